"""Counters and histograms that cost little to add to, and how they become metric families.

`prometheus_client`'s own take a lock and some 2 µs for each observation; a request here has some 25 µs for everything.
These are plain numbers of one thread; whoever scrapes reads them as they are.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from core import telemetry
from core.spans import Spans

INFINITY = float("inf")
Labels = Sequence[str]
NANOSECONDS = 1e-9
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Bounds of histograms of rows."""


class Seen(NamedTuple):
    """An observation that a trace stands for; `at` in Unix seconds."""

    value: float
    trace_id: int
    at: float


class Histogram:
    """`bounds` ascending, without infinity; `unit`: what one of theirs is in the metric's. Of one thread."""

    __slots__ = ("bounds", "counts", "seen", "sum", "unit")

    def __init__(self, bounds: Sequence[float], unit: float = 1.0) -> None:
        self.bounds = bounds
        self.unit = unit
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.seen: dict[int, Seen] = {}
        """The last traced one, by bucket."""

    def observe(self, value: float, count: int = 1) -> None:
        """`count` observations of the same value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def show(self, value: float, trace_id: int) -> None:
        """A trace for the bucket of an observation that was made."""
        self.seen[bisect_left(self.bounds, value)] = Seen(value, trace_id, time.time())

    def buckets(self) -> Iterator[tuple[str, float, Exemplar | None]]:
        """(upper bound, cumulative count, exemplar) as the exposition formats have them."""
        total = 0
        for at, count in enumerate(list(self.counts)):
            total += count
            bound = self.bounds[at] * self.unit if at < len(self.bounds) else INFINITY
            seen = self.seen.get(at)
            exemplar = seen and Exemplar({"trace_id": f"{seen.trace_id:032x}"}, seen.value * self.unit, seen.at)
            yield _text(bound), total, exemplar


def _text(bound: float) -> str:
    """As the exposition formats have it, without the noise of a unit's multiplication."""
    return str(floatToGoString(float(f"{bound:.9g}")))  # type: ignore[no-untyped-call]


class Source(Protocol):
    """What tells metrics of this process when it is asked."""

    def collect(self) -> Iterable[Metric]: ...


def counters(of: telemetry.Metric, values: Mapping[Any, float]) -> Metric:
    return _filled(CounterMetricFamily(of.name, of.help, labels=of.labels), values)


def gauges(of: telemetry.Metric, values: Mapping[Any, float]) -> Metric:
    return _filled(GaugeMetricFamily(of.name, of.help, labels=of.labels), values)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[Any, float]) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def histograms(of: telemetry.Metric, values: Iterable[tuple[Labels, Histogram]]) -> Metric:
    family = HistogramMetricFamily(of.name, of.help, labels=of.labels)
    for labels, histogram in values:
        buckets: Any = list(histogram.buckets())  # the stubs want an exemplar for each
        family.add_metric(labels, buckets, histogram.sum * histogram.unit)
    return family


def durations(buckets_ms: Sequence[float]) -> Histogram:
    """A histogram of nanoseconds that tells seconds."""
    return Histogram([round(bound * 1e6) for bound in sorted(set(buckets_ms))], NANOSECONDS)


class Tenants:
    """Requests by tenant and outcome: the first `telemetry.TENANTS_NAMED` tenants by name, all others together."""

    def __init__(self, named: int = telemetry.TENANTS_NAMED) -> None:
        self._named = named
        self._known: set[str] = set()
        self.counts: Counter[tuple[str, ...]] = Counter()

    def add(self, tenant: str, outcome: str, count: int = 1) -> None:
        if not tenant:
            return
        if tenant not in self._known:
            if len(self._known) < self._named:
                self._known.add(tenant)
            else:
                tenant = telemetry.OTHER
        self.counts[tenant, outcome] += count


class OfSpans:
    """How many spans left."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans

    def collect(self) -> Iterable[Metric]:
        spans = self._spans
        outcomes = {("exported",): spans.exported, ("dropped",): spans.dropped, ("failed",): spans.failed}
        yield counters(telemetry.SPANS, outcomes)


def registry(*sources: Source | None) -> CollectorRegistry:
    """What a process tells: its sources, and CPU, memory and descriptors of its own."""
    made = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    for source in sources:
        if source is not None:
            made.register(source)
    return made
