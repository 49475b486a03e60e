"""Keeps the routing table fresh: what is open, joined with what the repository's catalog knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from core.beats import Share
from core.errors import Draining, PenstockError
from core.settings import Settings
from gateway.batching.batcher import Batcher
from gateway.batching.entry import Entry
from gateway.recorder import Recorder
from gateway.routing import Key, Route, Table
from gateway.statistics import Statistics
from gateway.tracing import Tracer
from gateway.transports.base import Transport
from repository.records import Version
from repository.watch import Catalog

log = structlog.get_logger(__name__)


class Routes:
    """Open versions, each with its batcher; `table` is replaced whole at each change."""

    def __init__(self, settings: Settings, tracer: Tracer | None = None) -> None:
        self.table = Table()
        self.recorder = Recorder(settings, tracer)
        self._settings = settings
        self._catalog: Catalog | None = None
        self._open: dict[Key, Route] = {}
        self._leaving: dict[Key, Route] = {}
        """Retired and not drained yet."""
        self._shut: set[Key] = set()
        """Open, but nobody is there to serve."""
        self._transports: dict[Key, Transport] = {}
        self._listeners: list[Callable[[Table], None]] = []
        self.elsewhere: Callable[[Entry], bool] = _nowhere
        """What to do with a request whose version nobody serves any more: whether it is taken care of."""

    def listen(self, listener: Callable[[Table], None]) -> None:
        """Call `listener` with each new table."""
        self._listeners.append(listener)

    def refresh(self, catalog: Catalog) -> None:
        """The repository changed: versions, states or aliases."""
        self._catalog = catalog
        self._rebuild()

    async def open(self, version: Version, transport: Transport) -> None:
        """Requests may go to `version` from now on."""
        key = (version.model, version.version)
        if key in self._open:
            await self.retire(*key)
        recorder = self.recorder.version(version, Statistics())
        batcher = Batcher(version, transport, self._settings, recorder.executed, lambda entry: self.elsewhere(entry))
        self._transports[key] = transport
        self._open[key] = Route(version, batcher, recorder)
        self._rebuild()

    async def retire(self, model: str, version: int, within_s: float | None = None) -> None:
        """Send nothing more to a version, wait for what it has accepted, and let its transport go: all in `within_s`
        seconds where that is given, else each for as long as the settings allow."""
        key = (model, version)
        route = self._open.pop(key, None)
        if route is None:
            return
        self._shut.discard(key)
        self._leaving[key] = route
        self._rebuild()
        loop = asyncio.get_running_loop()
        ends = None if within_s is None else loop.time() + within_s
        try:
            if await route.batcher.drain(self._settings.drain_timeout_s if within_s is None else within_s):
                route.batcher.close(Draining("the model version was retired before this request was answered"))
            async with asyncio.timeout_at(ends):
                await self._transports.pop(key).close()
        except TimeoutError:
            log.warning("transport cut off", model=f"{model}/{version}")
        finally:
            del self._leaving[key]

    async def close(self, within_s: float | None = None) -> None:
        """Retire all, at the same time."""
        await asyncio.gather(*(self.retire(*key, within_s) for key in list(self._open)))

    def cut_off(self, error: PenstockError) -> int:
        """Answer all that was accepted with `error`; returns how many requests that were."""
        left = self.pending
        for route in self.working():
            route.batcher.close(error)
        return left

    def opened(self) -> list[Key]:
        return list(self._open)

    def working(self) -> list[Route]:
        """Those that have something to do, or may have: open, or retired and not drained yet."""
        return [*self._open.values(), *self._leaving.values()]

    def shut(self, keys: set[Key]) -> None:
        """New requests to these open versions are refused as not ready; what was accepted stays."""
        keys &= self._open.keys()
        if keys != self._shut:
            self._shut = keys
            self._rebuild()

    @property
    def pending(self) -> int:
        """Requests accepted and not answered."""
        return sum(route.batcher.pending for route in self.working())

    def shares(self, now: int) -> list[Share]:
        """What each version has to do here that this gateway may still send a batch of. `now`: monotonic ns."""
        return [route.batcher.share(now) for route in self.working()]

    def _rebuild(self) -> None:
        catalog = self._catalog
        known = (
            {}
            if catalog is None
            else {
                (version.model, version.version): catalog.state(version.model, version.version)
                for version in catalog.all_versions()
            }
        )
        self.table = Table(self._serving(), known, () if catalog is None else catalog.all_aliases())
        for listener in self._listeners:
            listener(self.table)

    def _serving(self) -> list[Route]:
        return [route for key, route in self._open.items() if key not in self._shut]


def _nowhere(entry: Entry) -> bool:
    return False
