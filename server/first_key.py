"""The key that a server started on this machine writes for its clients."""

from __future__ import annotations

import contextlib

from core.errors import PenstockError
from core.identity import ADMIN, CODE, Verifier
from repository.commands import Commands
from server import samples
from server.display import Display
from server.home import CLIENT_TOML, Home


async def first_key(home: Home, verifier: Verifier, commands: Commands) -> str:
    """The last key of this folder's clients that is good here; else the repository's first, or a new one like it."""
    for known in home.api_keys():
        with contextlib.suppress(PenstockError):
            verifier.verify(known.encode())
            return known
    issued = await commands.first_key()
    if issued is None:
        issued = await commands.create_key("local", role=ADMIN, owner="admin", grants=(CODE,))
    return issued.secret


def key_and_try(display: Display, home: Home, key: str, digits: bool) -> None:
    """The end of a greeting: the key, and a line to try where there are `digits` to classify."""
    display.say(f"  API key  {key}   (also in {home.folder / CLIENT_TOML})")
    if digits:
        display.say("Try it, from another terminal:")
        display.say(f"  .venv/bin/penstock predict digits --input {home.folder / samples.REQUEST}")
