"""What a key may be, and that nobody gives more than they have."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest, PermissionDenied
from core.identity import ADMIN, CODE, Principal
from repository.access import check_gift, check_key, covers


def admin(*patterns: str, grants: tuple[str, ...] = (CODE,)) -> Principal:
    return Principal("k", "n", "o", ADMIN, patterns, frozenset(grants))


GOOD = {"name": "n", "owner": "o", "role": "predict", "patterns": ("*",), "grants": (), "expires_in_s": None}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\r\nb"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"owner": "\x00"}, "owner"),
        ({"role": "root"}, "role"),
        ({"patterns": ()}, "models"),
        ({"patterns": ("[a-z]",)}, "models"),
        ({"patterns": ("../*",)}, "models"),
        ({"patterns": ("",)}, "models"),
        ({"patterns": ("a",) * 65}, "models"),
        ({"grants": ("everything",)}, "grants"),
        ({"expires_in_s": 0.0}, "expires_in_s"),
        ({"expires_in_s": -1.0}, "expires_in_s"),
        ({"expires_in_s": math.nan}, "expires_in_s"),
        ({"expires_in_s": math.inf}, "expires_in_s"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_field(wrong: dict[str, object], field: str) -> None:
    """The message begins with the field."""
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        check_key(**{**GOOD, **wrong})  # type: ignore[arg-type]
    check_key(**GOOD)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "given_", "covered"),
    [
        ("*", "anything*?", True),
        ("team-*", "team-a", True),
        ("team-*", "team-*", True),
        ("team-*", "team-a*", True),
        ("team-*", "*", False),
        ("team-*", "te*", False),
        ("team-*", "team", False),
        ("a?", "ab", True),
        ("a?", "a*", False),
        ("a?*", "a*", False),
        ("a?", "a?", True),
    ],
)
def test_what_covers_what(own: str, given_: str, covered: bool) -> None:
    """A pattern is covered when every model that it can match is."""
    assert covers(admin(own), (given_,)) is covered


PATTERNS = st.text(alphabet="ab*?", min_size=1, max_size=5)


@given(PATTERNS, PATTERNS, st.text(alphabet="ab", min_size=1, max_size=8))
def test_a_covered_pattern_never_matches_more(own: str, given_: str, model: str) -> None:
    """The rule may be stricter than needed, never laxer."""
    if covers(admin(own), (given_,)) and fnmatchcase(model, given_):
        assert admin(own).sees(model)


def test_nobody_gives_what_they_do_not_have() -> None:
    """Neither models nor grants."""
    check_gift(admin("a*"), ("ab", "ac*"), (CODE,))
    with pytest.raises(PermissionDenied, match="models"):
        check_gift(admin("a*"), ("ab", "b"), ())
    with pytest.raises(PermissionDenied, match="grant"):
        check_gift(admin("*", grants=()), ("*",), (CODE,))
