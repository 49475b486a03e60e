"""Routes that follow the repository and the beats: what is ready to be served opens, what is let go is drained.

    state READY, and a ready replica heard ─► open: a transport over the broker, a batcher that knows its warm-up
    open, but no ready replica is heard    ─► shut: new requests are refused as not ready; opens by itself again
    any other state, or gone               ─► retired: drained, then forgotten

The worker side waits for this: a version is let go only when no live gateway names it in its beats any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from gateway.routes import Routes
from gateway.routing import Key
from gateway.transports.base import Transport
from repository.catalog import Catalog
from repository.records import READY, Version

log = structlog.get_logger(__name__)


def plan(catalog: Catalog, opened: set[Key]) -> tuple[list[Version], list[Key]]:
    """(versions to open, open ones to retire). Pure."""
    ready = {
        (version.model, version.version): version
        for version in catalog.all_versions()
        if catalog.ready(version.model, version.version)
    }
    return [version for key, version in ready.items() if key not in opened], sorted(opened - ready.keys())


class Following:
    """`transport(version)`: the way to its replicas; `serves(model, version)`: whether one is there now."""

    def __init__(
        self, routes: Routes, transport: Callable[[Version], Transport], serves: Callable[[str, int], bool]
    ) -> None:
        self._routes = routes
        self._transport = transport
        self._serves = serves
        self._retiring: set[Key] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._catalog = Catalog()
        self._unopened: list[Version] = []
        """READY, but nobody was heard yet who serves them."""

    def changed(self, catalog: Catalog) -> None:
        """The repository says something else."""
        self._catalog = catalog
        opened = set(self._routes.opened())
        self._unopened, to_retire = plan(catalog, opened | self._retiring)
        for key in to_retire:
            if key in opened:
                self._retiring.add(key)
                self._spawn(self._retire(key))
        self.beats()

    def beats(self) -> None:
        """Who is alive may have changed."""
        served = [version for version in self._unopened if self._serves(version.model, version.version)]
        self._unopened = [version for version in self._unopened if version not in served]
        for version in served:
            self._spawn(self._open(version))
        self._routes.shut({key for key in self._routes.opened() if not self._serves(*key)})

    def waiting(self) -> list[Key]:
        """Versions that ought to be served and are not: no route yet, or nobody heard behind it."""
        return sorted(
            (version.model, version.version)
            for version in self._catalog.all_versions()
            if self._catalog.state(version.model, version.version) == READY
            and not self._serves(version.model, version.version)
        )

    async def close(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _open(self, version: Version) -> None:
        key = (version.model, version.version)
        if key not in self._routes.opened():
            await self._routes.open(version, self._transport(version))
            log.info("route opened", model=version.key)
            self.beats()

    async def _retire(self, key: Key) -> None:
        try:
            await self._routes.retire(*key)
            log.info("route closed", model=f"{key[0]}/{key[1]}")
        finally:
            self._retiring.discard(key)
            self.changed(self._catalog)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
