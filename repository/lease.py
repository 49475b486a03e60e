"""Of several processes one does the work, the others wait: a record that its holder keeps moving.

No clock is shared. A holder raises the record's revision; a waiter that has not seen it move for `ttl` seconds of its
own monotonic clock takes it, by compare-and-set on the very revision that stood still. A holder that could not move it
counts itself out earlier, after three quarters of `ttl` of its own clock since it began the last renewal that
succeeded. That renewal was seen by nobody before it began, so no waiter takes the lease while its holder still counts
itself in, as long as two clocks do not differ by a quarter in speed.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import structlog
from msgspec.structs import replace

from core.errors import Conflict, Unavailable
from repository.records import Lease
from repository.store import Store

HELD_SHARE = 0.75
"""Of `ttl`: how long a holder counts itself in without a renewal."""
TRIES_A_TTL = 5
"""Renewals, or looks of a waiter, in one `ttl`."""

log = structlog.get_logger(__name__)


class Sighting(NamedTuple):
    revision: int
    """0: no record."""
    since: float
    """Monotonic seconds of the observer at which it first saw this revision."""


def sighted(before: Sighting | None, lease: Lease | None, now: float) -> Sighting:
    """What an observer knows after a look: the time counts from the first look that saw this revision."""
    revision = 0 if lease is None else lease.revision
    return before if before is not None and before.revision == revision else Sighting(revision, now)


def may_take(lease: Lease | None, owner: str, sighting: Sighting, now: float, ttl: float) -> bool:
    """Whether `owner` may write itself in: the lease is free, its own, or has not moved for `ttl` seconds."""
    return lease is None or lease.owner in ("", owner) or now - sighting.since >= ttl


class Tenure:
    """One candidate for the lease `name`. `ttl`: seconds after which a silent holder is succeeded."""

    def __init__(
        self,
        store: Store,
        name: str,
        ttl: float,
        owner: str | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = secrets.token_hex(8) if owner is None else owner
        self._store = store
        self._name = name
        self._ttl = ttl
        self._now = now
        self._sighting: Sighting | None = None
        self._held_until = -math.inf

    def __repr__(self) -> str:
        return f"<Tenure {self._name} of {self.owner}, {'held' if self.held else 'not held'}>"

    @property
    def held(self) -> bool:
        """Whether this one may act as the holder now."""
        return self._now() < self._held_until

    async def acquire(self) -> bool:
        """Take the lease or renew it, in one look and one write; whether it is held then. Raises Unavailable."""
        began = self._now()
        lease = await self._store.get(Lease, self._name)
        self._sighting = sighted(self._sighting, lease, self._now())
        if not may_take(lease, self.owner, self._sighting, self._now(), self._ttl):
            self._held_until = -math.inf
            return False
        try:
            await self._write(lease, self.owner)
        except Conflict:
            return self.held
        self._held_until = began + self._ttl * HELD_SHARE
        return True

    async def release(self) -> None:
        """Give the lease up, so that the next one need not wait for it to expire. Fine where it is not held."""
        self._held_until = -math.inf
        lease = await self._store.get(Lease, self._name)
        if lease is not None and lease.owner == self.owner:
            with suppress(Conflict):
                await self._write(lease, "")

    async def wait(self) -> None:
        """Until the lease is held."""
        while not await self._try():  # noqa: ASYNC110 - another process holds it
            await asyncio.sleep(self._ttl / TRIES_A_TTL)

    async def keep(self) -> None:
        """Renew it; returns once it is no longer held."""
        while self.held:
            await asyncio.sleep(self._ttl / TRIES_A_TTL)
            await self._try()

    async def _try(self) -> bool:
        try:
            return await self.acquire()
        except Unavailable as error:
            log.warning("lease_unreachable", lease=self._name, error=error.message)
            return False

    async def _write(self, lease: Lease | None, owner: str) -> None:
        if lease is None:
            await self._store.insert(Lease(name=self._name, owner=owner))
        else:
            await self._store.replace(replace(lease, owner=owner))
