"""The sample models into a repository that has never had them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from core.identity import ADMIN, Principal
from repository.commands import Commands
from repository.manifest import Manifest
from repository.watch import Watch
from server import samples

PIECE = 1 << 20
TRAINER = Principal("samples", "samples", "admin", ADMIN)

Step = Callable[..., None]


async def register(home: Path, watch: Watch, commands: Commands, step: Step, timeout_s: float) -> None:
    """Train what is missing and push it; returns when each is ready. `step`: as `server.display.Display.step`."""
    missing = [name for name in samples.NAMES if name not in watch.catalog.versions]
    if not missing:
        return
    trained = await samples.train(home / "samples", step)
    samples.copy_request(trained, home)
    for sample in trained.models:
        if sample.name in missing:
            step(f"loading {sample.name}")
            await _push(commands, sample, timeout_s)


async def _push(commands: Commands, sample: samples.Sample, timeout_s: float) -> None:
    manifest = msgspec.json.decode(sample.manifest.read_bytes(), type=Manifest)
    version = await commands.push(sample.name, manifest, _pieces(sample.artifact), TRAINER)
    await commands.settle(version, manifest.alias, timeout_s)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
