"""What every server process is made of: steps up, each with its step down; tasks beside; an HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from typing import Any

import structlog

from core.errors import Unavailable
from core.settings import Settings
from server.listen import HttpServer

log = structlog.get_logger()


class Composition:
    """`_start` brings everything up, the listeners last, and pushes on `_stack` how each step is undone."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Raises PenstockError with one sentence where it cannot; what was started by then is stopped again."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        """Let go, in the reverse order of the start."""
        await self._stack.aclose()

    async def _serve(self, server: HttpServer, sockets: list[Any]) -> None:
        task = self._background(server.serve(sockets))

        async def finish() -> None:
            server.should_exit = True
            await asyncio.wait([task])

        self._stack.push_async_callback(finish)
        while not server.started:
            if task.done():
                raise Unavailable("the HTTP server did not start")
            await asyncio.sleep(0.005)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin something short that nobody waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do something for as long as the process lives; should it fail, the process stops, as on SIGTERM: half alive
        it would be worse."""
        task = asyncio.create_task(work)
        task.add_done_callback(_end_with)
        self._tasks.add(task)
        self._stack.push_async_callback(_end, task)
        return task


def authority(host: str, port: int) -> str:
    """host:port, as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _end_with(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of this process failed, so it stops", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
