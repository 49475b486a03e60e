"""The beats that gateway and workers would send each second if they were processes of their own.

An embedded server has no broker to listen to: it makes them from its own routes, so that its status is told in the
same words.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from control.status import Seen
from core.beats import READY, GatewayBeat, ReplicaBeat, Share, boot_id
from core.identity import ADMIN, Principal
from gateway.health import Health
from gateway.routes import Routes
from gateway.routing import Route
from gateway.statistics import Statistics
from repository.catalog import Catalog

INSTANCE = "embedded"
PERIOD_S = 1.0
SAMPLES = 16
"""Executions that one beat tells of, at most."""
EVERYONE = Principal("pulse", "pulse", "pulse", ADMIN)


class Mark(NamedTuple):
    """The counters of a version at one time. `runs`: rows of an execution → how many of them, and their ns."""

    runs: dict[int, tuple[float, float]] = {}
    requests: int = 0
    queued: int = 0
    """Nanoseconds that those requests waited, all together."""


def mark(statistics: Statistics) -> Mark:
    runs = {
        rows: (size.executions, size.compute_input + size.compute_infer + size.compute_output)
        for rows, size in statistics.sizes.items()
    }
    return Mark(runs, statistics.queue.count, statistics.queue.ns)


class Spent(NamedTuple):
    """What happened between two marks. `samples`: (rows, seconds) of executions; `queue_wait`: ns of one request."""

    samples: list[tuple[int, float]]
    busy: float
    queue_wait: int


def between(before: Mark, after: Mark, elapsed: float) -> Spent:
    """`elapsed` in seconds. Of many executions the samples stand for their sizes' shares. Pure."""
    runs: dict[int, tuple[float, float]] = {}
    for rows, (count, ns) in after.runs.items():
        old_count, old_ns = before.runs.get(rows, (0.0, 0.0))
        if count > old_count:
            runs[rows] = (count - old_count, (ns - old_ns) / 1e9)
    total, seconds = sum(count for count, _ in runs.values()), sum(spent for _, spent in runs.values())
    samples = [
        (rows, spent / count)
        for rows, (count, spent) in runs.items()
        for _ in range(max(1, round(count * min(1.0, SAMPLES / total))))
    ]
    requests = after.requests - before.requests
    wait = (after.queued - before.queued) // requests if requests else 0
    return Spent(samples[:SAMPLES], min(1.0, seconds / elapsed), wait)


class Pulse:
    """`look` tells of the last second; `catalog` gives the present one."""

    def __init__(self, routes: Routes, catalog: Callable[[], Catalog], health: Health) -> None:
        self._routes = routes
        self._catalog = catalog
        self._health = health
        self._marks: dict[Statistics, Mark] = {}
        self._spent: dict[Statistics, Spent] = {}
        self._shares: list[Share] = []
        self._at = time.monotonic_ns()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            self.beat(time.monotonic_ns())

    def beat(self, now: int) -> None:
        """Take the second that ends at `now` (monotonic ns)."""
        marks = {route.statistics: mark(route.statistics) for route in self._open()}
        elapsed = (now - self._at) / 1e9
        self._spent = {each: between(self._marks.get(each, Mark()), marks[each], elapsed) for each in marks}
        self._marks, self._at = marks, now
        self._shares = self._routes.shares(now)

    def look(self) -> Seen:
        shares = {(share.model, share.version): share for share in self._shares}
        return Seen([self._replica(route, shares) for route in self._open()], [self._gateway()])

    def _open(self) -> list[Route]:
        return self._routes.table.open(EVERYONE)

    def _gateway(self) -> GatewayBeat:
        return GatewayBeat(
            sender=INSTANCE,
            boot=boot_id(),
            sent=self._at,
            host=socket.gethostname(),
            pid=os.getpid(),
            revision=self._catalog().revision,
            ready=self._health.ready,
            open=self._shares,
        )

    def _replica(self, route: Route, shares: dict[tuple[str, int], Share]) -> ReplicaBeat:
        version = route.version
        spent = self._spent.get(route.statistics, Spent([], 0.0, 0))
        share = shares.get((version.model, version.version))
        return ReplicaBeat(
            sender=INSTANCE,
            boot=boot_id(),
            sent=self._at,
            host=socket.gethostname(),
            pid=os.getpid(),
            model=version.model,
            version=version.version,
            attempt=version.attempt,
            state=READY,
            max_batch=version.max_batch,
            in_flight=0 if share is None else share.aboard,
            queue_wait=spent.queue_wait,
            busy=spent.busy,
            samples=spent.samples,
        )
