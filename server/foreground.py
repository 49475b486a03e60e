"""A server in the foreground: from the first step shown on the terminal to the last request answered."""

from __future__ import annotations

import asyncio
from typing import Protocol

from server.display import Display
from server.stopping import stop_signal


class Server(Protocol):
    async def bring_up(self, display: Display) -> None:
        """Start, until everything is ready. Raises PenstockError where it cannot; then nothing is left running."""

    def greet(self, display: Display) -> None:
        """Say what there is to see."""

    async def stop(self) -> None:
        """Finish what was accepted, let go of everything; also of what a cancelled `bring_up` has left."""


async def run(server: Server) -> None:
    """Start, greet, and serve until SIGINT or SIGTERM. Raises PenstockError where it cannot start."""
    stop = stop_signal()
    with Display() as display:
        display.step("starting")
        starting = asyncio.create_task(server.bring_up(display))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
        except BaseException:
            stopping.cancel()
            raise
    if starting.done():
        server.greet(display)
        await stopping
    else:
        starting.cancel()
        await asyncio.wait([starting])
    await server.stop()
