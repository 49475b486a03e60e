"""Where a server comes from, and who may install what is missing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

MASK = "********"


class Source(StrEnum):
    ENVIRONMENT = "environment"
    """Its URL was given: nothing is started."""
    CONTAINER = "container"
    NATIVE = "native"


def source(url: str, engine: bool, image: str) -> Source:
    """`url`: what the server's variable holds ('' where it is not set); `engine`: whether a container engine answers;
    `image`: the server's ('' where it has none)."""
    if url:
        return Source.ENVIRONMENT
    return Source.CONTAINER if engine and image else Source.NATIVE


def may_install(uid: int, environment: Mapping[str, str]) -> bool:
    """As root and in CI missing packages are installed; elsewhere that is the user's decision."""
    return uid == 0 or environment.get("CI", "").lower() in ("true", "1")


def masked(url: str) -> str:
    """The URL without its password, to be shown."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    userinfo, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{userinfo.partition(':')[0]}:{MASK}@{host}"))
