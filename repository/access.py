"""What a key may be: its names, patterns, grants and life; and what one key may give to another. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from core.errors import InvalidRequest, PermissionDenied
from core.identity import DEPLOY, GRANTS, PERMITS, Principal
from repository.records import LOADING, READY, VersionState
from repository.signature import check_text

PATTERN = re.compile(r"[A-Za-z0-9._*?-]{1,128}\Z")
NOT_LOADED = "not loaded"
MAX_PATTERNS = 64
MAX_LIFE_S = 10 * 366 * 86400.0


def check_key(
    name: str, owner: str, role: str, patterns: tuple[str, ...], grants: tuple[str, ...], expires_in_s: float | None
) -> None:
    """Raise InvalidRequest that names the field in which a new key cannot be so."""
    check_text(name, "name: a key's name", 128)
    check_text(owner, "owner: a key's owner", 128)
    if role not in PERMITS:
        raise InvalidRequest(f"role: {role[:64]!r} is none of {', '.join(PERMITS)}")
    if not 1 <= len(patterns) <= MAX_PATTERNS:
        raise InvalidRequest(f"models: 1 to {MAX_PATTERNS} patterns")
    for pattern in patterns:
        if not PATTERN.match(pattern):
            raise InvalidRequest(f"models: {pattern[:128]!r} is no pattern: a model name in which * and ? may stand")
    for grant in grants:
        if grant not in GRANTS:
            raise InvalidRequest(f"grants: {grant[:64]!r} is none of {', '.join(sorted(GRANTS))}")
    if expires_in_s is not None and not (math.isfinite(expires_in_s) and 0 < expires_in_s <= MAX_LIFE_S):
        raise InvalidRequest(f"expires_in_s: more than 0 and at most {MAX_LIFE_S:.0f} seconds")


def check_gift(giver: Principal, patterns: tuple[str, ...], grants: tuple[str, ...]) -> None:
    """Raise PermissionDenied where a key would be given more than the giver has."""
    if not covers(giver, patterns):
        raise PermissionDenied("a key cannot be given models that your own key does not cover")
    if not giver.grants.issuperset(grants):
        raise PermissionDenied("a key cannot be given a grant that your own key does not have")


def reason_for(principal: Principal, state: VersionState | None) -> str:
    """Why a version stands as it does. It may quote the model, so only those hear it who may deploy."""
    if state is None or principal.may(DEPLOY):
        return "" if state is None else state.reason
    return "" if state.state in (READY, LOADING) else NOT_LOADED


def covers(principal: Principal, patterns: Iterable[str]) -> bool:
    """Whether everything that `patterns` match is surely seen by `principal`."""
    return all(any(_within(pattern, own) for own in principal.patterns) for pattern in patterns)


def _within(pattern: str, own: str) -> bool:
    """`*` of `own` may stand for wildcards of `pattern`; `?` may not, since `*` can be more than one character."""
    if pattern == own:
        return True
    wild = "*" in pattern or "?" in pattern
    return not (wild and "?" in own) and fnmatchcase(pattern, own)
