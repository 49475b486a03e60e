"""A driver's calls, once begun, run to their own end: whoever gives up waiting leaves them alone.

PyMongo's asyncio driver must not be cancelled on Python 3.11: its waits go through `asyncio.wait_for`, which lets go of
a wait that is cancelled while it times out, and that wait then takes the driver's lock for nobody. From then on no
call of the client returns. Each call ends by itself within the client's `timeoutMS`; motor's, which run in threads,
always did so.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Uncancelled:
    """A collection, or a cursor of it: whatever it gives to wait for may be waited for with a timeout."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __repr__(self) -> str:
        return f"<Uncancelled {self._of!r}>"

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._of, name)
        if not inspect.isroutine(method):
            return method

        def call(*values: Any, **named: Any) -> Any:
            given = method(*values, **named)
            return to_its_end(given) if inspect.isawaitable(given) else Uncancelled(given)

        return call


async def to_its_end(work: Awaitable[T]) -> T:
    """Its result; a caller who is cancelled meanwhile goes, and it goes on."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_heard)
    return await asyncio.shield(task)


def _heard(task: asyncio.Future[Any]) -> None:
    """An error that came when nobody waited any more is not reported as one that was overlooked."""
    if not task.cancelled():
        task.exception()
