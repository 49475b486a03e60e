"""The same metrics that Prometheus scrapes, sent by OTLP for those who collect them so.

On where OTEL_METRICS_EXPORTER is `otlp`, or OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set: the general endpoint alone is
not taken for it, since it is often a collector of traces. Each OTEL_METRIC_EXPORT_INTERVAL milliseconds (60,000), from
a thread; what cannot be delivered is dropped, for the next one tells the same and more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping

import structlog
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from core.otel import begun, disabled, protocol, resource

log = structlog.get_logger(__name__)

INTERVAL_MS = 60_000.0
LEAVE_S = 2.0
CUMULATIVE = AggregationTemporality.CUMULATIVE


def wanted(environment: Mapping[str, str]) -> bool:
    if disabled(environment):
        return False
    exporter = environment.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    return exporter == "otlp" or (not exporter and bool(environment.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")))


class Pusher:
    """Sends the metrics of a registry now and then, until it is closed; the last time then."""

    def __init__(
        self, registry: CollectorRegistry, service: str, exporter: MetricExporter, interval_s: float = INTERVAL_MS / 1e3
    ) -> None:
        self._registry = registry
        self._resource = resource(service)
        self._exporter = exporter
        self._interval_s = interval_s
        self._since = time.time_ns()
        self._over = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="metrics by OTLP", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Blocks, for `LEAVE_S` seconds at the most."""
        self._over.set()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._interval_s)
            try:
                data = converted(self._registry.collect(), self._resource, self._since, time.time_ns())
                told = self._exporter.export(data) is MetricExportResult.SUCCESS
            except Exception as error:
                log.debug("metrics could not be sent", error=str(error)[:200])
                told = False
            if not told and not self._away:
                log.warning("metrics cannot be sent by OTLP")
            self._away = not told


def from_environment(registry: CollectorRegistry, service: str) -> Pusher | None:
    """None where nothing is to be sent."""
    if not wanted(os.environ):
        return None
    try:
        interval_s = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "") or INTERVAL_MS) / 1e3
    except ValueError:
        interval_s = INTERVAL_MS / 1e3
    return begun(lambda: Pusher(registry, service, _exporter(), max(0.1, interval_s)), "metrics")


def _exporter() -> MetricExporter:
    if protocol(os.environ, "METRICS") == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as OverGrpc

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OverHttp

    from core.collector_http import session

    return OverHttp(session=session())


def converted(families: Iterable[Family], resource: Resource, since: int, now: int) -> MetricsData:
    """Prometheus' families as OTLP has them: cumulative since `since`; both in Unix nanoseconds. Pure."""
    metrics = [metric for family in families if (metric := _metric(family, since, now)) is not None]
    scope = ScopeMetrics(InstrumentationScope("penstock"), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, since: int, now: int) -> Metric | None:
    data: Sum | Gauge | Histogram
    if family.type == "counter":
        totals = [sample for sample in family.samples if sample.name.endswith("_total")]
        data = Sum([_number(sample, since, now) for sample in totals], CUMULATIVE, True)
    elif family.type == "gauge":
        data = Gauge([_number(sample, since, now) for sample in family.samples])
    elif family.type == "histogram":
        data = Histogram(list(_points(family.samples, since, now)), CUMULATIVE)
    else:
        return None
    return Metric(family.name, family.documentation, family.unit, data) if data.data_points else None


def _number(sample: Sample, since: int, now: int) -> NumberDataPoint:
    return NumberDataPoint(dict(sample.labels), since, now, sample.value)


def _points(samples: Iterable[Sample], since: int, now: int) -> Iterable[HistogramDataPoint]:
    found: dict[tuple[tuple[str, str], ...], tuple[list[tuple[float, float]], list[float]]] = {}
    for sample in samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        buckets, sums = found.setdefault(labels, ([], []))
        if sample.name.endswith("_bucket"):
            buckets.append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_sum"):
            sums.append(sample.value)
    for labels, (buckets, sums) in found.items():
        below = [0.0, *(count for _, count in buckets[:-1])]
        counts = [round(count - before) for (_, count), before in zip(buckets, below, strict=True)]
        bounds = [bound for bound, _ in buckets[:-1]]
        total = sums[0] if sums else 0.0
        yield HistogramDataPoint(dict(labels), since, now, sum(counts), total, counts, bounds, 0.0, 0.0)
