"""The key that a server started on this machine writes for its clients."""

from __future__ import annotations

import contextlib

import structlog

from core.errors import PenstockError, Unavailable
from core.identity import ADMIN, CODE, Verifier
from core.settings import Settings
from repository.commands import Commands
from server import samples
from server.display import Display
from server.home import CLIENT_TOML, Home

log = structlog.get_logger(__name__)


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


def tell_clients(home: Home, **told: str) -> bool:
    """Whether `client.toml` says it (`Home.write_client`): a disk that takes nothing keeps no server from serving."""
    try:
        home.write_client(**told)
    except Unavailable as error:
        log.warning("client.toml was not written: clients need address and key from the greeting", error=error.message)
        return False
    return True


def docs_of(url: str, settings: Settings) -> str:
    """What follows a server's URL in a greeting; beyond loopback the page asks for a key that no browser sends."""
    return f"      docs: {url}/docs" if settings.on_loopback else ""


def key_and_try(display: Display, home: Home, key: str, told: bool, digits: bool) -> None:
    """The end of a greeting: the key, whether clients were `told`, and a line to try where there are `digits`."""
    display.say(f"  API key  {key}" + (f"   (also in {home.folder / CLIENT_TOML})" if told else ""))
    if digits:
        display.say("Try it, from another terminal:")
        display.say(f"  .venv/bin/penstock predict digits --input {home.folder / samples.REQUEST}")
