"""Keeps a `Catalog` fresh: asks the store for its revision every interval, at once after a write of this process.

When the store is away the last catalog stays, so that whatever is routed goes on being served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from core.errors import PenstockError, Unavailable
from repository.catalog import Catalog, catalog
from repository.records import Alias, ApiKey, Deployment, Version, VersionState
from repository.store import Store

__all__ = ["Catalog", "Subscriber", "Watch"]

T = TypeVar("T")
Subscriber = Callable[[Catalog], None]
log = structlog.get_logger(__name__)

STEADY_READS = 3
"""Attempts to read everything at one revision, before a catalog read during writes is taken: the next poll mends it."""


class Watch:
    """`catalog` is the latest that was read. `interval`: seconds between polls."""

    def __init__(self, store: Store, interval: float) -> None:
        self.catalog = Catalog()
        self.announce: Callable[[], None] = _to_nobody
        """How other processes are told of a write; without it they find out by polling."""
        self._store = store
        self._interval = interval
        self._subscribers: list[Subscriber] = []
        self._failing: list[Subscriber] = []
        """Those that could not take the catalog: they are told again at each look."""
        self.followed = -1
        """Revision of the last catalog that all subscribers took."""
        self._reading: _Reading | None = None
        """The one under way."""
        self._poked = asyncio.Event()
        self._changed = asyncio.Event()
        self._away = False
        self._kept = False
        """The catalog is one from before: the store may count anew."""

    @property
    def confirmed(self) -> bool:
        """Whether the store said at the last look that the catalog is what it holds, and all subscribers took it."""
        return self.catalog.revision >= 0 and not self._away and not self._failing

    def adopt(self, kept: Catalog) -> None:
        """Take a catalog that was kept from before, until the store can be read."""
        self.catalog = kept
        self._kept = self._away = True
        self._publish()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` with each new catalog, and now with the present one if something was read already."""
        self._subscribers.append(subscriber)
        if self.catalog.revision >= 0:
            self._tell(subscriber)

    async def wrote(self) -> Catalog:
        """This process has written: the others are told. Returns what the store says now, as `refresh` does."""
        self.announce()
        return await self.refresh()

    def poke(self) -> None:
        """This process has written: `run` looks at once, and the others are told."""
        self.look()
        self.announce()

    def look(self) -> None:
        """Ask `run` to look at once."""
        self._poked.set()

    async def refresh(self) -> Catalog:
        """Read what the store says now, tell the subscribers, return it. Raises Unavailable when it is away.

        There is one reading at a time, and whoever finds one under way waits for it. If it fails, so has he: nobody
        waits twice for a store that is away. If it does not, it may have begun before a write that he knows of: all
        who came meanwhile share the next one.
        """
        if self._reading is not None:
            await self._reading.outcome()
        while self._reading is not None:
            if await self._reading.outcome():
                return self.catalog
        reading = self._reading = _Reading()
        with reading:
            try:
                await self._read_anew()
            finally:
                self._reading = None
        return self.catalog

    async def refresh_within(self, patience: float) -> Catalog:
        """`refresh`, of a store that may be away for up to `patience` seconds: an election, a moment without answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            try:
                return await self.refresh()
            except Unavailable:
                if loop.time() + self._interval >= deadline:
                    raise
            await asyncio.sleep(self._interval)

    async def run(self) -> None:
        """Refresh for ever: after each interval and each poke."""
        while True:
            await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._poked.wait()
            self._poked.clear()

    async def until(self, found: Callable[[Catalog], T | None], timeout: float) -> T | None:
        """The first answer of `found` that is not None, asked of each new catalog; None after `timeout` seconds.

        Looks by itself every interval, so it needs no `run` beside it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while (answer := found(self.catalog)) is None and loop.time() < deadline:
            changed = self._changed
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + self._interval)):
                    await changed.wait()
            except TimeoutError:
                await self._look()
        return answer

    async def _read_anew(self) -> None:
        if await self._store.revision() != self.catalog.revision or self._kept:
            self.catalog = await _read(self._store)
            self._kept = False
            self._publish()
        elif self._failing:
            self._tell_all(self._failing)

    def _publish(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._tell_all(self._subscribers)

    def _tell_all(self, subscribers: list[Subscriber]) -> None:
        for subscriber in list(subscribers):
            self._tell(subscriber)
        if not self._failing:
            self.followed = self.catalog.revision

    def _tell(self, subscriber: Subscriber) -> None:
        failed_before = subscriber in self._failing
        try:
            subscriber(self.catalog)
        except Exception:
            if not failed_before:
                log.exception("subscriber_failed", subscriber=repr(subscriber))
                self._failing.append(subscriber)
        else:
            if failed_before:
                log.info("subscriber_follows", subscriber=repr(subscriber), revision=self.catalog.revision)
                self._failing.remove(subscriber)

    async def _look(self) -> None:
        """Refresh, and only log it once when that does not work."""
        try:
            await self.refresh()
        except Exception as error:
            if not self._away:
                known = isinstance(error, PenstockError)
                log.warning("repository_away", error=str(error), exc_info=None if known else error)
            self._away = True
        else:
            if self._away:
                log.info("repository_back", revision=self.catalog.revision)
            self._away = False


class _Reading:
    """One look at the store, made within `with` by one task; others may wait for its `outcome`."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._failure: Exception | None = None
        self._whole = False

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._whole = error is None
        self._failure = error if isinstance(error, Exception) else None
        self._over.set()

    async def outcome(self) -> bool:
        """Whether it came to its end; False where its task was cancelled. Raises what it failed with."""
        await self._over.wait()
        if self._failure is not None:
            raise self._failure
        return self._whole


def _to_nobody() -> None: ...


async def _read(store: Store) -> Catalog:
    """All records, at one revision where writers leave the time for it."""
    for _ in range(STEADY_READS):
        revision = await store.revision()
        read = catalog(
            revision,
            await store.find(Version),
            await store.find(VersionState),
            await store.find(Alias),
            await store.find(ApiKey),
            await store.find(Deployment),
        )
        if await store.revision() == revision:
            break
    return read
