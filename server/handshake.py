"""What is said to be ready is served by every gateway: whoever pushes may ask at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from core.fleet import Fleet
from repository.commands import Served

PATIENCE_S = 3.0
"""A gateway that does not come along in this time holds nobody up."""
LOOK_S = 0.02


def by_gateways(fleet: Fleet) -> Served:
    """Waits for the beats of all gateways that are alive."""

    async def served(model: str, version: int, revision: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not fleet.served(model, version, revision, time.monotonic_ns()):  # noqa: ASYNC110 - also by silence
                    await asyncio.sleep(LOOK_S)

    return served
