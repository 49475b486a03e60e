"""Makes the loaded versions match the wanted ones, and says of each in the repository how it stands.

    LOADING ──► READY ──► UNLOADING ──► UNAVAILABLE "unloaded" (or no state, when the version was deleted)
       └──► UNAVAILABLE and the reason

A new version is loaded and warmed beside the old one; `opened` is awaited before it is called READY, and only then
does the old one cease to be wanted: `closing` is awaited, which returns when the gateway has drained it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog

from core.errors import PenstockError, Unavailable, new_error_id
from core.settings import Settings
from repository.catalog import Catalog, Place
from repository.commands import Commands
from repository.records import LOADING, READY, UNAVAILABLE, UNLOADING, Version
from repository.store import Artifacts, Store
from repository.wanted import wanted
from repository.watch import Watch
from workers import plan
from workers.child import Child
from workers.folder import sweep
from workers.memory import give_back
from workers.prepare import prepare
from workers.states import States
from workers.worker import Worker

log = structlog.get_logger(__name__)

Endpoint = Worker | Child
Opened = Callable[[Version, Endpoint], Awaitable[None]]
Closing = Callable[[str, int], Awaitable[None]]
T = TypeVar("T")


class _Held:
    """A version in hand: LOADING, READY or UNLOADING, its endpoint from READY on."""

    __slots__ = ("endpoint", "phase", "version")

    def __init__(self, version: Version) -> None:
        self.version = version
        self.phase = LOADING
        self.endpoint: Endpoint | None = None


class Host:
    def __init__(
        self,
        store: Store,
        artifacts: Artifacts,
        watch: Watch,
        commands: Commands,
        settings: Settings,
        opened: Opened,
        closing: Closing,
    ) -> None:
        self._artifacts = artifacts
        self._watch = watch
        self._commands = commands
        self._settings = settings
        self._opened = opened
        self._closing = closing
        self._states = States(store, watch)
        self._held: dict[Place, _Held] = {}
        self._failed: dict[Place, int] = {}
        self._slots = asyncio.Semaphore(settings.concurrent_loads)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._follower: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Host {', '.join(f'{m}/{v} {held.phase}' for (m, v), held in self._held.items()) or 'of nothing'}>"

    async def start(self) -> None:
        """Follow the catalog from now on; returns at once."""
        await asyncio.to_thread(sweep)
        self._watch.subscribe(self._look)
        self._follower = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Give up loads, let every version go (its accepted requests are answered first).

        The records keep what was READY: that is how the next start knows what served while a higher version failed.
        """
        if self._follower is not None:
            self._follower.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._release(held) for held in list(self._held.values())))

    def unsettled(self) -> list[Place]:
        """Wanted versions that are neither ready nor known to have failed."""
        ready = {place for place, held in self._held.items() if held.phase == READY}
        return sorted(wanted(self._states.overlaid(self._watch.catalog)) - ready - set(self._failed))

    def _look(self, catalog: Catalog) -> None:
        self._changed.set()

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            catalog = self._states.overlaid(self._watch.catalog)
            phases = {place: held.phase for place, held in self._held.items()}
            for action in plan.plan(catalog, phases, self._failed):
                self._begin(action)

    def _begin(self, action: plan.Action) -> None:
        if isinstance(action, plan.Say):
            self._spawn(self._states.say(action.version, action.state, action.reason))
        elif isinstance(action, plan.Load):
            place = (action.version.model, action.version.version)
            held = self._held[place] = _Held(action.version)
            self._spawn(self._load(held))
        else:
            held = self._held[action.place]
            held.phase = UNLOADING
            self._spawn(self._let_go(held, plan.UNLOADED))

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Unavailable as error:
                log.warning("repository away", error=error.message)
            except Exception:
                log.exception("hosting failed")
            finally:
                self._changed.set()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- loading --------------------------------------------------------------------------------------------------

    async def _load(self, held: _Held) -> None:
        version = held.version
        place = (version.model, version.version)
        try:
            await self._states.say(version, LOADING)
            async with self._slots:
                note = await self._bring_up(held)
        except BaseException as error:
            if held.endpoint is not None:
                await held.endpoint.close()
            if isinstance(error, Unavailable):  # the repository is away: try again, not at once
                await asyncio.sleep(self._settings.poll_interval_s)
            del self._held[place]
            if isinstance(error, Unavailable) or not isinstance(error, Exception):
                raise
            self._failed[place] = version.attempt
            await self._states.say(version, UNAVAILABLE, _reason(version, error))
            return
        held.phase = READY
        self._failed.pop(place, None)
        await self._states.say(held.version, READY, note)
        log.info("version ready", model=version.key, note=note)

    async def _bring_up(self, held: _Held) -> str:
        """Load, complete the record, open; returns what the pusher should know."""
        version = held.version
        path = await self._artifacts.fetch(version.digest)
        example = (await self._artifacts.fetch(version.example)).read_bytes() if version.example else None
        async with asyncio.timeout(self._settings.load_timeout_s):
            held.endpoint, found, note = await self._endpoint(version, path, example)
        if (found.signature, found.max_batch) != (version.signature, version.max_batch):
            held.version = await self._commands.complete_signature(version, found.signature, found.max_batch)
        await self._opened(held.version, held.endpoint)
        return note

    async def _endpoint(self, version: Version, path: Path, example: bytes | None) -> tuple[Endpoint, Version, str]:
        if version.carries_code:
            child = Child(version, path, example, self._settings, self._child_changed)
            note = await child.start()
            return child, child.version, note
        settings, loop = self._settings, asyncio.get_running_loop()
        prepared = await in_thread(
            lambda: prepare(version, path, example, settings.threads, settings.default_max_batch, isolated=False),
            lambda late: late.runner.close(),
        )
        worker = Worker(prepared.runner, prepared.samples, loop.call_soon_threadsafe)
        worker.start()
        return worker, worker.version, prepared.note

    def _child_changed(self, version: Version, state: str, reason: str) -> None:
        """A child that was ready went, or came back."""
        held = self._held.get((version.model, version.version))
        if held is not None and held.phase == READY:
            self._spawn(self._states.say(held.version, state, reason))

    # --- letting go -----------------------------------------------------------------------------------------------

    async def _let_go(self, held: _Held, reason: str) -> None:
        await self._states.say(held.version, UNLOADING, best_effort=True)
        await self._release(held)
        await self._states.say(held.version, UNAVAILABLE, reason, best_effort=True)
        log.info("version unloaded", model=held.version.key)

    async def _release(self, held: _Held) -> None:
        """Drain a version and free what it holds."""
        version = held.version
        try:
            await self._closing(version.model, version.version)
        except Exception:
            log.exception("closing failed", model=version.key)
        if held.endpoint is not None:
            await held.endpoint.close(self._settings.drain_timeout_s)
        held.endpoint = None
        self._held.pop((version.model, version.version), None)
        await asyncio.to_thread(give_back)


def _reason(version: Version, error: Exception) -> str:
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
