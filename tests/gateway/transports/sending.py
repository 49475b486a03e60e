"""Sending batches by hand, and reading what comes back."""

from __future__ import annotations

import asyncio
import threading
import time

from gateway.transports.base import Transport
from tests.workers.samples import array_of, failure_in
from workers.messages import Batch, Reply

BOUND_S = 20.0
SECOND = 1_000_000_000


def send(transport: Transport, batch: Batch) -> asyncio.Future[Reply]:
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    thread = threading.current_thread()
    sending = True

    def done(reply: Reply) -> None:
        assert not sending, "answered from inside send"
        assert threading.current_thread() is thread
        future.set_result(reply)

    transport.send(batch, done)
    sending = False
    return future


async def answered(future: asyncio.Future[Reply]) -> Reply:
    return await asyncio.wait_for(future, BOUND_S)


def soon(seconds: float) -> int:
    return time.monotonic_ns() + round(seconds * SECOND)


def reasons(reply: Reply) -> list[str]:
    return [failure_in(result).reason for result in reply.results]


def firsts(reply: Reply) -> list[float]:
    return [float(array_of(result)[0, 0]) for result in reply.results]
