"""What may be called what: models, versions, aliases."""

from __future__ import annotations

import re

from core.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")
RESERVED = frozenset({"stats"})
"""`v2/models/stats` is the statistics of every model (protocol.md 8.4), so no model may bear the name."""

CHAMPION = "champion"
"""The alias that a request without a version gets, where it is set."""


def check_model(name: str) -> str:
    """Return `name`, or raise InvalidRequest saying what a model may be called."""
    if not NAME.match(name) or name in RESERVED:
        raise InvalidRequest(
            f"{name[:128]!r} is no model name: 1 to 128 of letters, digits, '.', '_', '-', "
            "starting with a letter or digit, and not 'stats'"
        )
    return name


def check_alias(alias: str) -> str:
    """Return `alias`, or raise InvalidRequest: an alias is a name that no version number can be taken for."""
    if not NAME.match(alias) or alias.isdigit():
        raise InvalidRequest(f"{alias[:128]!r} is no alias: a name of letters, digits, '.', '_', '-', not all digits")
    return alias
