"""What every server process is made of: steps up, each with its step down; tasks beside; an HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from typing import Any

import structlog

from core.errors import PenstockError, Unavailable
from core.settings import Settings
from core.watched import Watched
from server.listen import HttpServer

log = structlog.get_logger()


class Composition:
    """`_start` brings everything up, the listeners last, and pushes on `_stack` how each step is undone."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stack = contextlib.AsyncExitStack()
        self._failure: BaseException | None = None

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
        """Let go, in the reverse order of the start. Raises Unavailable where it came to that by a part that failed."""
        await self._stack.aclose()
        if self._failure is not None:
            why = self._failure.message if isinstance(self._failure, PenstockError) else "a part of it failed"
            raise Unavailable(f"stopped: {why}")

    def _watch(self, process: str, service: str) -> Watched:
        """Have spans and metrics of this process told; what waits of them leaves last."""
        watched = Watched(self.settings, process, service)
        self._stack.push_async_callback(asyncio.to_thread, watched.close)
        return watched

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
        task.add_done_callback(self._end_with)
        self._tasks.add(task)
        self._stack.push_async_callback(_end, task)
        return task

    def _end_with(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._failure = self._failure or error
        expected = isinstance(error, PenstockError)
        log.critical(
            "a part of this process failed, so it stops", error=str(error), exc_info=None if expected else error
        )
        os.kill(os.getpid(), signal.SIGTERM)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
