"""A whole embedded server in the test's own process and event loop, so that a test can see and weaken its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from core.identity import ADMIN, CODE, Principal
from core.settings import Settings
from repository.manifest import Manifest
from server.embedded import Embedded

PUSHER = Principal("tests", "tests", "tests", ADMIN, grants=frozenset({CODE}))


@asynccontextmanager
async def inside(home: Path, **settings: Any) -> AsyncIterator[Embedded]:
    """Started on free ports, without samples, ready; stopped at the end."""
    server = Embedded(Settings(home=home, http_port=0, grpc_port=0, samples=False, **settings))
    await server.start()
    server.health.set(True)
    try:
        yield server
    finally:
        await server.stop()


async def push(server: Embedded, name: str, artifact: bytes, **manifest: Any) -> int:
    """The number of the new version, once it is ready."""
    told = msgspec.convert({"format": "onnx", **manifest}, Manifest)
    version = await server.commands.push(name, told, _pieces(artifact), PUSHER)
    await server.commands.settle(version, told.alias)
    return version.version


async def _pieces(artifact: bytes) -> AsyncIterator[bytes]:
    yield artifact
