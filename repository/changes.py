"""Compare-and-set writes of single records, tried anew while others write the same: what commands are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from msgspec.structs import replace

from core.errors import Conflict, NotFound, Unavailable
from core.names import NAME, VERSION
from repository.records import Alias, ApiKey, Counter, Version
from repository.store import R, Store

T = TypeVar("T")

ATTEMPTS = 100
"""Tries of a compare-and-set before a record is called contended."""


class Changes:
    """Every method raises Unavailable when the store is away or a record is contended."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, model: str, version: int | str) -> Version:
        """The version that a number, digits or an alias stand for. Raises NotFound."""
        if not NAME.match(model) or not NAME.match(str(version)):
            raise unknown(model, version)
        if isinstance(version, str) and not VERSION.match(version):
            alias = await self._store.get(Alias, f"{model}/{version}")
            if alias is None:
                raise unknown(model, version)
            version = alias.version
        found = await self._store.get(Version, f"{model}/{version}")
        if found is None:
            raise unknown(model, version)
        return found

    async def change(self, version: Version, change: Callable[[Version], Version], touch: bool = False) -> Version:
        """Write what `change` makes of the version as it is now; `touch`: even where that is the same."""

        async def write() -> Version:
            now = await self.find(version.model, version.version)
            changed = change(now)
            return now if changed == now and not touch else await self._store.replace(changed)

        return await _persist(write, version.key)

    async def forget(self, version: Version, refusal: Callable[[], Awaitable[Conflict | None]]) -> None:
        """Delete the version, unless there is a `refusal`: what that sees is no older than the record deleted."""

        async def write() -> Conflict | None:
            now = await self._store.get(Version, version.key)
            refused = await refusal()
            if now is not None and refused is None:
                await self._store.delete(now)
            return refused

        refused = await _persist(write, version.key)
        if refused is not None:
            raise refused

    async def next_number(self, model: str) -> int:
        """A version number that was never given out before."""

        async def write() -> int:
            counter = await self._store.get(Counter, model)
            if counter is None:
                return (await self._store.insert(Counter(model=model, last=1))).last
            return (await self._store.replace(replace(counter, last=counter.last + 1))).last

        return await _persist(write, model)

    async def put(self, record: R) -> R:
        """Insert the record, or replace the one of its key."""

        async def write() -> R:
            there = await self._store.get(type(record), record.key)
            if there is None:
                return await self._store.insert(record)
            return await self._store.replace(replace(record, revision=there.revision))

        return await _persist(write, record.key)

    async def drop(self, kind: type[R], key: str) -> R | None:
        """Delete the record of that key; returns it, None where there was none."""

        async def write() -> R | None:
            there = await self._store.get(kind, key)
            if there is not None:
                await self._store.delete(there)
            return there

        return await _persist(write, key)

    async def revoke(self, key: ApiKey) -> ApiKey:
        async def write() -> ApiKey:
            now = await self._store.get(ApiKey, key.key_id)
            if now is None:
                raise NotFound(f"unknown key {key.key_id!r}")
            return now if now.revoked else await self._store.replace(replace(now, revoked=True))

        return await _persist(write, key.key_id)


def unknown(model: str, version: int | str) -> NotFound:
    return NotFound(f"model {model[:128]!r} has no version {str(version)[:128]!r}")


async def _persist(write: Callable[[], Awaitable[T]], what: str) -> T:
    for _ in range(ATTEMPTS):
        with suppress(Conflict):
            return await write()
    raise Unavailable(f"{what!r} is being changed by too many at once")
