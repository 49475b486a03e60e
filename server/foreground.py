"""The whole of Penstock in this process, from the first step shown on the terminal to the last request answered."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from core.identity import ADMIN, Principal
from core.settings import Settings
from repository.catalog import Catalog
from repository.manifest import Manifest
from server import samples
from server.display import Display
from server.embedded import Embedded
from server.stopping import stop_signal

PIECE = 1 << 20
TRAINER = Principal("samples", "samples", "admin", ADMIN)


async def run(settings: Settings) -> None:
    """Start, say what there is to see, and serve until SIGINT or SIGTERM. Raises PenstockError where it cannot."""
    server = Embedded(settings)
    stop = stop_signal()
    with Display() as display:
        display.step("starting")
        starting = asyncio.create_task(_start(server, display))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
        except BaseException:
            stopping.cancel()
            raise
    if starting.done():
        _greet(server, display)
        await stopping
    else:
        starting.cancel()
        await asyncio.wait([starting])
    await server.stop()


async def _start(server: Embedded, display: Display) -> None:
    await server.start()
    try:
        if server.settings.samples:
            await _samples(server, display)
        await _settled(server, display)
    except BaseException:
        await server.stop()
        raise
    gc.freeze()  # what stands now stays: full collections need not look at it again
    server.health.set(True)


async def _samples(server: Embedded, display: Display) -> None:
    """Train and push the samples that this repository has never had."""
    missing = [name for name in samples.NAMES if name not in server.watch.catalog.versions]
    if not missing:
        return
    trained = await samples.train(server.home.folder / "samples", display.step)
    samples.copy_request(trained, server.home.folder)
    for sample in trained.models:
        if sample.name in missing:
            display.step(f"loading {sample.name}")
            await _push(server, sample)


async def _push(server: Embedded, sample: samples.Sample) -> None:
    manifest = msgspec.json.decode(sample.manifest.read_bytes(), type=Manifest)
    commands = server.commands
    version = await commands.push(sample.name, manifest, _pieces(sample.artifact), TRAINER)
    await commands.settle(version, manifest.alias, server.settings.load_timeout_s)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


async def _settled(server: Embedded, display: Display) -> None:
    """Wait until every wanted version is ready or has failed."""

    def all_settled(_: Catalog) -> bool | None:
        waiting = server.host.unsettled()
        if waiting:
            display.step(f"loading {waiting[0][0]}")
        return None if waiting else True

    await server.watch.until(all_settled, server.settings.load_timeout_s)


def _greet(server: Embedded, display: Display) -> None:
    home = server.home.folder
    models = ", ".join(sorted({route.name for route in server.routes.table.open(TRAINER)})) or "none yet"
    display.say(f"Penstock is ready.  models: {models}")
    display.say(f"  REST     {server.url}      docs: {server.url}/docs")
    display.say(f"  gRPC     {server.grpc}")
    display.say(f"  API key  {server.api_key}   (also in {home / 'client.toml'})")
    if "digits" in models:
        display.say("Try it, from another terminal:")
        display.say(f"  .venv/bin/penstock predict digits --input {home / samples.REQUEST}")
