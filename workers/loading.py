"""A version's record and artifact → an endpoint that is warm, or the reason why there is none, in words for people."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from core.errors import PenstockError, new_error_id
from core.settings import Settings
from repository.records import Version
from repository.store import Artifacts
from workers.child import Changed, Child
from workers.prepare import prepare
from workers.worker import Worker

log = structlog.get_logger(__name__)

T = TypeVar("T")


async def load(
    version: Version, artifacts: Artifacts, settings: Settings, changed: Changed, device: str = "cpu"
) -> tuple[Worker | Child, str]:
    """The endpoint, running, and what the pusher should know; `changed` hears of a child process that goes or comes.

    Raises Unavailable where the repository is away, TimeoutError after load_timeout_s, PenstockError for what cannot
    be served, and what nobody expected.
    """
    path = await artifacts.fetch(version.digest)
    example = (await artifacts.fetch(version.example)).read_bytes() if version.example else None
    async with asyncio.timeout(settings.load_timeout_s):
        if version.carries_code:
            child = Child(version, path, example, settings, changed, device)
            return child, await child.start()
        prepared = await in_thread(
            lambda: prepare(
                version,
                path,
                example,
                settings.threads,
                settings.default_max_batch,
                isolated=False,
                device=device,
            ),
            lambda late: late.runner.close(),
        )
    worker = Worker(prepared.runner, prepared.samples, asyncio.get_running_loop().call_soon_threadsafe)
    worker.start()
    return worker, prepared.note


def refusal(version: Version, error: Exception) -> str:
    """Why a version does not load, for its pusher; what is not meant for people goes to the log under an id."""
    if isinstance(error, PenstockError) and error.error_id is None:
        log.warning("version not loaded", model=version.key, reason=error.message)
        return error.message
    if isinstance(error, TimeoutError):
        return "it was not loaded and warm in time"
    if isinstance(error, MemoryError):
        return "memory ran out while it was loaded"
    error_id = new_error_id()
    log.error("version not loaded", model=version.key, error_id=error_id, exc_info=error)
    return f"it could not be loaded (error id {error_id})"


async def in_thread(function: Callable[[], T], late: Callable[[T], object]) -> T:
    """The result of `function`, run in a thread of its own, which holds nobody up if it hangs.

    A result that comes after the caller was cancelled is handed to `late`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            _settle(loop, _refuse, future, error)
        else:
            _settle(loop, _answer, future, result, late)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


def _settle(loop: asyncio.AbstractEventLoop, how: Callable[..., None], *arguments: Any) -> None:
    with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
        loop.call_soon_threadsafe(how, *arguments)


def _answer(future: asyncio.Future[T], result: T, late: Callable[[T], object]) -> None:
    if future.done():
        late(result)
    else:
        future.set_result(result)


def _refuse(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
