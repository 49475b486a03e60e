"""Names: the client's rule is the server's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from penstock import names
from penstock.errors import InvalidInput

from core import names as server
from core.errors import InvalidRequest

TRIED = (
    "m", "M.1_a-b", "7", "07", "0", "-1", "stats", "Stats", "", ".", "..", "../x", "a/b", "a b", "m\n", "ü", "٣",
    "%2e", "_a", "-a", "x" * 128, "x" * 129, "9" * 18, "9" * 19,
)  # fmt: skip


def passes(check: Callable[[str], object], text: str) -> bool:
    try:
        check(text)
    except (InvalidInput, InvalidRequest):
        return False
    return True


@pytest.mark.parametrize("text", TRIED)
def test_what_the_server_refuses_is_not_sent_and_nothing_else(text: str) -> None:
    """Models and aliases alike; a version is a number of the server's or an alias."""
    assert passes(names.check_model, text) == passes(server.check_model, text)
    assert passes(names.check_alias, text) == passes(server.check_alias, text)
    version = bool(server.VERSION.match(text)) or passes(server.check_alias, text)
    assert passes(names.check_version, text) == version


def test_a_version_in_digits_is_a_number() -> None:
    """As JSON bodies show it."""
    assert [names.check_version(version) for version in (2, "2", "champion")] == [2, 2, "champion"]
