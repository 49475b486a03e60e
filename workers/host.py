"""Makes the loaded versions match the wanted ones, and says of each in the repository how it stands.

    LOADING ──► READY ──► UNLOADING ──► UNAVAILABLE "unloaded" (or no state, when the version was deleted)
       └──► UNAVAILABLE and the reason

A new version is loaded and warmed beside the old one; `opened` is awaited before it is called READY, and only then
does the old one cease to be wanted: `closing` is awaited, which returns when the gateway has drained it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from core.errors import Unavailable
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
from workers.loading import load, refusal
from workers.memory import give_back
from workers.states import States
from workers.worker import Worker

log = structlog.get_logger(__name__)

SAY_AGAIN_S = 30.0
"""Between two tries to write a state, at most."""

Endpoint = Worker | Child
Opened = Callable[[Version, Endpoint], Awaitable[None]]
Closing = Callable[[str, int], Awaitable[None]]


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
            await self._states.say(version, LOADING, best_effort=True)
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
            reason = refusal(version, error)
            await self._say(version, UNAVAILABLE, reason, lambda: self._failed.get(place) == version.attempt)
            return
        held.phase = READY
        self._failed.pop(place, None)
        log.info("version ready", model=version.key, note=note)
        await self._say(held.version, READY, note, lambda: held.phase == READY)

    async def _say(self, version: Version, state: str, reason: str, still: Callable[[], bool]) -> None:
        """Until it is written, as long as it is `still` so: a disk that is full keeps nothing from being served, and
        has room again some time."""
        wait = self._settings.poll_interval_s
        while still():
            try:
                await self._states.say(version, state, reason)
                return
            except Unavailable:
                await asyncio.sleep(wait)
            wait = min(2 * wait, SAY_AGAIN_S)

    async def _bring_up(self, held: _Held) -> str:
        """Load, complete the record, open; returns what the pusher should know."""
        version = held.version
        held.endpoint, note = await load(version, self._artifacts, self._settings, self._child_changed)
        found = held.endpoint.version
        if (found.signature, found.max_batch) != (version.signature, version.max_batch):
            held.version = await self._commands.complete_signature(version, found.signature, found.max_batch)
        await self._opened(held.version, held.endpoint)
        return note

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
