"""What may be called what: the server's own rule, so that a slip is told before anything is sent."""

from __future__ import annotations

import re

from penstock.errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
VERSION = re.compile(r"[1-9][0-9]{0,17}\Z")
RESERVED = "stats"
"""A path of the protocol stands where a model of this name would."""


def check_model(name: str) -> str:
    """Return `name`, or raise InvalidInput saying what a model may be called."""
    if not NAME.match(name) or name == RESERVED:
        raise InvalidInput(
            f"{name[:128]!r} is no model name: 1 to 128 of letters, digits, '.', '_', '-', "
            f"starting with a letter or digit, and not {RESERVED!r}"
        )
    return name


def check_alias(alias: str) -> str:
    """Return `alias`, or raise InvalidInput: an alias is a name that no version number can be taken for."""
    if not NAME.match(alias) or alias.isdigit():
        raise InvalidInput(f"{alias[:128]!r} is no alias: a name of letters, digits, '.', '_', '-', not all digits")
    return alias


def check_version(version: int | str) -> int | str:
    """Digits as the number that they are, an alias as it is. Raises InvalidInput for what can be neither."""
    text = str(version)
    if VERSION.match(text):
        return int(text)
    if not NAME.match(text) or text.isdigit():
        raise InvalidInput(f"{text[:128]!r} is no version: a number from 1 on, or an alias")
    return text
