"""When a process in the foreground ends: on SIGINT, on SIGTERM, or when the process that started it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket

LIFELINE = "PENSTOCK_LIFELINE"
"""Environment variable: the number of an inherited socket whose other end is closed when its starter dies."""
TICK_S = 1.0


def stop_signal() -> asyncio.Event:
    """Set by the first reason to stop; more of them change nothing, since the stop is bounded in time."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    descriptor = os.environ.pop(LIFELINE, "")
    if descriptor.isdigit():
        follow(socket.socket(fileno=int(descriptor)), stop)
    return stop


def follow(lifeline: socket.socket, *stops: asyncio.Event) -> None:
    """Set `stops` when the other end is closed. Nothing is ever sent here, so readable means closed."""
    loop = asyncio.get_running_loop()
    lifeline.setblocking(False)

    def gone() -> None:
        loop.remove_reader(lifeline)
        for stop in stops:
            stop.set()

    loop.add_reader(lifeline, gone)


async def tick(lifeline: socket.socket) -> None:
    """Say now, and each `TICK_S`, to whoever holds the other end that this process lives; until nobody does."""
    with contextlib.suppress(OSError):
        while True:
            with contextlib.suppress(BlockingIOError):  # not listened to for long
                lifeline.send(b".")
            await asyncio.sleep(TICK_S)
