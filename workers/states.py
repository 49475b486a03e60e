"""What a host says of its versions: written to the repository, and remembered, for the catalog lags behind."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from core.errors import Conflict, Unavailable
from repository.catalog import Catalog, Place
from repository.records import Version, VersionState
from repository.store import Store
from repository.watch import Watch

log = structlog.get_logger(__name__)

ATTEMPTS = 20
"""Tries of a compare-and-set: a state has one writer, but for deletions."""


class States:
    def __init__(self, store: Store, watch: Watch) -> None:
        self._store = store
        self._watch = watch
        self._said: dict[Place, VersionState] = {}
        self._writing = asyncio.Lock()

    def overlaid(self, catalog: Catalog) -> Catalog:
        """The catalog with what was said here in place of what it still says."""
        return replace(catalog, states={**catalog.states, **self._said})

    async def say(self, version: Version, state: str, reason: str = "", best_effort: bool = False) -> None:
        """Write the state of a version; of one that was deleted, delete it.

        `best_effort`: a store that is away is only logged, else Unavailable is raised.
        """
        said = VersionState(
            model=version.model, version=version.version, state=state, reason=reason, attempt=version.attempt
        )
        async with self._writing:
            try:
                await self._write(version, said)
            except (Unavailable, Conflict) as error:
                log.warning("state not written", model=version.key, state=state, error=error.message)
                if not best_effort:
                    raise Unavailable(error.message) from error
        self._watch.poke()

    async def _write(self, version: Version, said: VersionState) -> None:
        place = (version.model, version.version)
        for _ in range(ATTEMPTS):
            known = await self._store.get(VersionState, said.key)
            exists = await self._store.get(Version, version.key) is not None
            try:
                if exists:
                    self._said[place] = await self._put(known, said)
                else:
                    self._said.pop(place, None)
                    if known is not None:
                        await self._store.delete(known)
                return
            except Conflict:
                continue
        raise Conflict(f"the state of {version.key} keeps changing")

    async def _put(self, known: VersionState | None, said: VersionState) -> VersionState:
        stamped = _stamped(said, 0 if known is None else known.revision)
        return await (self._store.insert(stamped) if known is None else self._store.replace(stamped))


def _stamped(said: VersionState, revision: int) -> VersionState:
    return VersionState(
        model=said.model,
        version=said.version,
        state=said.state,
        reason=said.reason,
        attempt=said.attempt,
        updated=time.time(),
        revision=revision,
    )
