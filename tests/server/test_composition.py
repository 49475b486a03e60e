"""A process whose part fails stops, and says so by its exit."""

from __future__ import annotations

import asyncio

import pytest

from core.errors import Unavailable
from core.settings import Settings
from server.composition import Composition
from server.stopping import stop_signal


class One(Composition):
    """With one part, which ends as it is told."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(Settings())
        self._error = error
        self.undone = False

    async def _start(self) -> None:
        self._stack.callback(lambda: setattr(self, "undone", True))
        self._background(self._part())

    async def _part(self) -> None:
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("error", "told"),
    [(Unavailable("Ray is away"), "Ray is away"), (ValueError("inside"), "a part of it failed")],
)
async def test_a_part_that_fails_ends_the_process(error: Exception, told: str) -> None:
    """As on SIGTERM, everything undone; what is not meant for people stays in the log."""
    stop, process = stop_signal(), One(error)
    await process.start()
    await asyncio.wait_for(stop.wait(), 5)
    with pytest.raises(Unavailable, match=told):
        await process.stop()
    assert process.undone


async def test_a_stop_that_was_asked_for_is_no_failure() -> None:
    process = One(None)
    await process.start()
    await process.stop()
    assert process.undone
