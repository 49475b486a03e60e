"""`penstock setup`: what a new repository begins with: the first key, in client.toml, a key for Prometheus where it is
asked for, and the sample models.

It runs once beside servers that run elsewhere, and does nothing where everything stands already.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from penstock.config import server_of
from penstock.errors import NotConfigured

from core import logs, settings
from core.errors import InvalidRequest, PenstockError, Unavailable
from core.identity import Verifier
from core.settings import Settings
from repository.commands import Commands
from repository.opening import open_repository
from repository.records import READY
from repository.wanted import wanted
from repository.watch import Watch
from server import outlets, samples
from server.display import Display
from server.first_key import first_key
from server.home import CLIENT_TOML, Home
from server.observe_key import provide_observe_key
from server.registering import Step, register

Url = Annotated[str, typer.Option(envvar="PENSTOCK_URL", help="Where clients find the gateways' HTTP.")]
Grpc = Annotated[str, typer.Option(envvar="PENSTOCK_GRPC", help="Where clients find the gateways' gRPC: host:port.")]
Control = Annotated[str, typer.Option(envvar="PENSTOCK_CONTROL", help="Where clients find the control plane.")]
ObserveKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Leave a key of role observe there, for Prometheus (credentials_file)."),
]


class Addresses(NamedTuple):
    """What clients are told; this process asks none of them."""

    url: str
    grpc: str
    control: str


def setup(
    url: Url = "http://127.0.0.1:8080",
    grpc: Grpc = "127.0.0.1:8081",
    control: Control = "http://127.0.0.1:8082",
    observe_key: ObserveKey = None,
) -> None:
    """Put the first key and the sample models into the repository, and client.toml into PENSTOCK_HOME."""
    outlets.secure()
    try:
        chosen = settings.load()
        logs.configure(chosen)
        with Display() as display:
            asyncio.run(set_up(chosen, Addresses(url, grpc, control), display.step, observe_key))
        display.say(f"Penstock is set up: addresses and key for clients are in {chosen.home / CLIENT_TOML}")
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None


async def set_up(chosen: Settings, addresses: Addresses, step: Step, observe_key: Path | None = None) -> None:
    """The keys first, so that they can be used while samples load. Raises PenstockError with one sentence."""
    _check(addresses)
    home = Home(chosen.home)
    try:
        store, artifacts = await open_repository(chosen)
        try:
            watch = Watch(store, chosen.poll_interval_s)
            commands = Commands(store, artifacts, chosen, watch)
            await provide_key(home, watch, commands, addresses)
            if observe_key is not None:
                await provide_observe_key(observe_key, await _verifier(watch), commands)
            if chosen.samples:
                await register(home.folder, watch, commands, step, chosen.load_timeout_s)
                await _loaded(watch, commands, chosen.load_timeout_s)
        finally:
            await store.close()
    finally:
        home.release()


async def provide_key(home: Home, watch: Watch, commands: Commands, addresses: Addresses) -> str:
    """The key for this folder's clients, in its client.toml; one that is good already is kept."""
    key = await first_key(home, await _verifier(watch), commands)
    home.write_client(**addresses._asdict(), api_key=key)
    return key


async def _verifier(watch: Watch) -> Verifier:
    """Of the keys that the repository knows now."""
    await watch.refresh()
    verifier = Verifier()
    verifier.replace(watch.catalog.credentials())
    return verifier


async def _loaded(watch: Watch, commands: Commands, timeout_s: float) -> None:
    """Also samples of an earlier run that ended too soon; not those unloaded by name. Raises Unavailable."""
    for model, number in sorted(wanted(watch.catalog)):
        version = watch.catalog.version(model, number)
        if model in samples.NAMES and version is not None:
            state = await commands.wait_state(model, number, version.attempt, timeout_s)
            if state.state != READY:
                raise Unavailable(f"version {number} of the sample {model!r} is not served: {state.reason}")


def _check(addresses: Addresses) -> None:
    host, _, port = addresses.grpc.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InvalidRequest(f"the gRPC address is no address: {addresses.grpc!r}; one looks like 127.0.0.1:8081")
    try:
        for url in (addresses.url, addresses.control):
            server_of(url)
    except NotConfigured as error:
        raise InvalidRequest(str(error)) from None
