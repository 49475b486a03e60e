"""What is said to be done is done at every gateway: whoever pushes, or gets a key, may ask at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from core.fleet import Fleet
from repository.commands import Commands

PATIENCE_S = 3.0
"""A gateway that does not come along in this time holds nobody up."""
LOOK_S = 0.02


def by_gateways(commands: Commands, fleet: Fleet) -> None:
    """Have what is done wait for the beats of all gateways that are alive."""

    async def served(model: str, version: int, revision: int) -> None:
        await _until(lambda: fleet.served(model, version, revision, time.monotonic_ns()))

    async def followed(revision: int) -> None:
        await _until(lambda: fleet.followed(revision, time.monotonic_ns()))

    commands.served, commands.followed = served, followed


async def _until(condition: Callable[[], bool]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - also by silence
                await asyncio.sleep(LOOK_S)
