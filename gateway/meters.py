"""What this gateway did, as Prometheus counts it: added to once a batch, read when somebody scrapes."""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import Metric

from core import telemetry
from core.beats import Share
from core.meters import ROWS, Histogram, Tenants, counters, durations, gauges, histograms
from core.telemetry import CANCELLED, OK, outcome_of
from gateway.exchange import GRPC, REST

if TYPE_CHECKING:
    from gateway.batching.batcher import BatchDone
    from gateway.dataplane import Call
    from gateway.routing import Route

Key = tuple[str, str]
VERSIONS = 256
"""Versions whose counts are kept; those not open go first."""
PATIENCE_S = 1.0
"""A scrape waits this long for the event loop."""


class _State(NamedTuple):
    share: Share
    pending: int
    replicas: int

    def with_(self, other: _State) -> _State:
        mine, theirs = self.share, other.share
        both = Share(
            mine.model,
            mine.version,
            mine.demand + theirs.demand,
            mine.waiting + theirs.waiting,
            max(mine.oldest, theirs.oldest),
            mine.aboard + theirs.aboard,
        )
        return _State(both, self.pending + other.pending, max(self.replicas, other.replicas))


class VersionMeters:
    """Of one version. `tenants` are all versions'."""

    def __init__(self, buckets_ms: Sequence[float], tenants: Tenants) -> None:
        self.wait, self.queue, self.compute = (durations(buckets_ms) for _ in range(3))
        self.totals = {REST: durations(buckets_ms), GRPC: durations(buckets_ms)}
        self.rows = Histogram(ROWS)
        self.outcomes: Counter[str] = Counter(dict.fromkeys(telemetry.OUTCOMES, 0))
        self.refusals: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self._tenants = tenants

    def executed(self, batch: BatchDone, calls: Sequence[Call]) -> None:
        """A batch is back; `calls` are those of it that have their answer."""
        self.rows.observe(batch.rows)
        self.batches[batch.reason] += 1
        if not calls:
            return
        timing, count = batch.timing, len(calls)
        self.outcomes[OK] += count
        self.queue.observe(timing.queue, count)
        self.compute.observe(timing.compute, count)
        self._each(batch, calls)

    def _each(self, batch: BatchDone, calls: Sequence[Call]) -> None:
        dispatched, answered = batch.dispatched, batch.answered
        wait, arrivals, tenant, of_tenant = self.wait, 0, calls[0].tenant, 0
        for call in calls:
            arrived = call.arrived
            arrivals += arrived
            wait.counts[bisect_left(wait.bounds, dispatched - arrived)] += 1
            total = self.totals[call.exchange.transport]
            took = answered - arrived
            total.counts[bisect_left(total.bounds, took)] += 1
            total.sum += took
            if call.tenant != tenant:
                self._tenants.add(tenant, OK, of_tenant)
                tenant, of_tenant = call.tenant, 0
            of_tenant += 1
        self._tenants.add(tenant, OK, of_tenant)
        wait.sum += len(calls) * dispatched - arrivals

    def show(self, call: Call, batch: BatchDone, trace_id: int) -> None:
        """A traced request of that batch: an example of its buckets."""
        self.wait.show(batch.dispatched - call.arrived, trace_id)
        self.totals[call.exchange.transport].show(batch.answered - call.arrived, trace_id)
        self.compute.show(batch.timing.compute, trace_id)
        self.queue.show(batch.timing.queue, trace_id)

    def refused(self, reason: str, tenant: str) -> None:
        outcome = outcome_of(reason)
        self.outcomes[outcome] += 1
        self.refusals[reason] += 1
        self._tenants.add(tenant, outcome)

    def cancelled(self, tenant: str) -> None:
        self.outcomes[CANCELLED] += 1
        self._tenants.add(tenant, CANCELLED)


class Meters:
    """Of all versions of one gateway."""

    def __init__(self, buckets_ms: Sequence[float]) -> None:
        self.unrouted: Counter[str] = Counter()
        self.tenants = Tenants()
        self._connections: Callable[[], int] = int
        self._routes: Callable[[], Iterable[Route]] = tuple
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._buckets_ms = buckets_ms
        self._versions: dict[Key, VersionMeters] = {}

    def watch(self, routes: Callable[[], Iterable[Route]], connections: Callable[[], int]) -> None:
        """Tell of what is under way too: at the routes that work on the loop that runs now, and how many HTTP
        connections are open."""
        self._routes = routes
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def version(self, model: str, number: str) -> VersionMeters:
        """Its meters; one that is opened again goes on counting."""
        found = self._versions.pop((model, number), None) or VersionMeters(self._buckets_ms, self.tenants)
        if len(self._versions) >= VERSIONS:
            working = {(route.name, route.number) for route in self._routes()}
            gone = next((key for key in self._versions if key not in working), None)
            if gone is not None:
                del self._versions[gone]
        self._versions[model, number] = found
        return found

    def collect(self) -> Iterable[Metric]:
        versions = dict(self._versions)
        yield histograms(telemetry.DURATION, [each for key, m in versions.items() for each in _stages(key, m)])
        yield histograms(telemetry.BATCH_ROWS, [(key, meters.rows) for key, meters in versions.items()])
        for metric, of in (
            (telemetry.REQUESTS, "outcomes"),
            (telemetry.REFUSALS, "refusals"),
            (telemetry.BATCHES, "batches"),
        ):
            counts = {
                (*key, word): n for key, meters in versions.items() for word, n in dict(getattr(meters, of)).items()
            }
            yield counters(metric, counts)
        yield counters(telemetry.UNROUTED, {(reason,): count for reason, count in dict(self.unrouted).items()})
        yield counters(telemetry.TENANTS, dict(self.tenants.counts))
        yield gauges(telemetry.CONNECTIONS, {(): self._connections()})
        yield from self._now()

    def _now(self) -> Iterable[Metric]:
        """What is under way. The event loop's state is read by the event loop; where that is stuck, it is left out."""
        try:
            states = self._asked()
        except (TimeoutError, RuntimeError):  # stuck, or closed
            return
        yield gauges(telemetry.QUEUED, {key: state.share.waiting for key, state in states.items()})
        yield gauges(telemetry.OLDEST, {key: state.share.oldest / 1e9 for key, state in states.items()})
        yield gauges(telemetry.IN_FLIGHT, {key: state.pending for key, state in states.items()})
        yield gauges(telemetry.IN_FLIGHT_BATCHES, {key: state.share.aboard for key, state in states.items()})
        yield gauges(telemetry.REPLICAS, {key: state.replicas for key, state in states.items()})

    def _asked(self) -> dict[Key, _State]:
        if self._loop is None or threading.get_ident() == self._thread:
            return self._states()
        answer: Future[dict[Key, _State]] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(self._states()))
        return answer.result(PATIENCE_S)

    def _states(self) -> dict[Key, _State]:
        """A version that is opened again while the last of its requests are answered is under way twice."""
        now = time.monotonic_ns()
        states: dict[Key, _State] = {}
        for route in self._routes():
            key, batcher = (route.name, route.number), route.batcher
            state = _State(batcher.share(now), batcher.pending, batcher.transport.replicas)
            states[key] = state if key not in states else states[key].with_(state)
        return states


def _stages(key: Key, meters: VersionMeters) -> Iterable[tuple[tuple[str, ...], Histogram]]:
    yield (*key, "wait", ""), meters.wait
    yield (*key, "queue", ""), meters.queue
    yield (*key, "compute", ""), meters.compute
    for transport, total in meters.totals.items():
        yield (*key, "total", transport), total
