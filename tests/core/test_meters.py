"""Counters and histograms of our own, as Prometheus' own parser reads them, and by OTLP."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import exposition, parser

from core import meters, otlp_metrics, telemetry
from core.meters import Tenants, counters, durations, gauges, histograms

KEY = ("m", "1")


class Source:
    """One of each kind."""

    def __init__(self) -> None:
        self.took = durations((1, 10, 100))

    def collect(self):  # type: ignore[no-untyped-def]
        yield histograms(telemetry.EXECUTIONS, [(KEY, self.took)])
        yield counters(telemetry.REQUESTS, {(*KEY, "ok"): 3, (*KEY, 'q"u\\o\nte'): 1})
        yield gauges(telemetry.QUEUED, {KEY: 2})


parse: Any = parser.text_string_to_metric_families
render: Any = exposition.generate_latest


def text_of(registry: CollectorRegistry) -> str:
    return str(render(registry).decode())


def told(source: Source) -> dict[str, dict[tuple[str, ...], float]]:
    """Through the format and Prometheus' parser for it: sample → labels' values → value."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(source)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse(text_of(registry)):
        for sample in family.samples:
            labels = tuple(
                sample.labels[name] for name in ("model", "version", "outcome", "le") if name in sample.labels
            )
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_a_histogram_counts_up_to_its_bounds() -> None:
    """`le` includes its bound: prometheus.io/docs/concepts/metric_types."""
    source = Source()
    for ms in (0.5, 1.0, 1.000001, 10.0, 99.0, 5000.0):
        source.took.observe(round(ms * 1e6))
    source.took.observe(2_000_000, 4)
    found = told(source)
    buckets = {labels[-1]: count for labels, count in found["penstock_execution_seconds_bucket"].items()}
    assert buckets == {"0.001": 2, "0.01": 8, "0.1": 9, "+Inf": 10}
    assert found["penstock_execution_seconds_count"] == {KEY: 10}
    assert math.isclose(found["penstock_execution_seconds_sum"][KEY], 5.119500001)


def test_an_example_stands_beside_its_bucket() -> None:
    source = Source()
    source.took.observe(5_000_000)
    source.took.show(5_000_000, 0xABC)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(source)
    (line,) = [line for line in text_of(registry).splitlines() if "trace_id" in line]
    assert 'le="0.01"' in line
    assert f'# {{trace_id="{0xABC:032x}"}} 0.005' in line


def test_labels_are_escaped() -> None:
    found = told(Source())
    assert found["penstock_requests_total"] == {(*KEY, "ok"): 3, (*KEY, 'q"u\\o\nte'): 1}
    assert found["penstock_queue_rows"] == {KEY: 2}


def test_only_so_many_tenants_have_a_name() -> None:
    """Whoever can make keys cannot make time series without end."""
    tenants = Tenants(named=2)
    for tenant in ("a", "b", "c", "d", "a"):
        tenants.add(tenant, "ok", 2)
    assert dict(tenants.counts) == {("a", "ok"): 4, ("b", "ok"): 2, ("other", "ok"): 4}


@pytest.mark.parametrize(
    ("reasons", "outcome"),
    [
        (["internal", "model_failed", "worker_lost"], "failed"),
        (["deadline_exceeded"], "late"),
        (["queue_full", "hopeless", "not_ready", "draining", "unavailable", "quota_exceeded"], "refused"),
        (["invalid_request", "unauthenticated", "permission_denied", "not_found", "too_large"], "invalid"),
    ],
)
def test_whose_fault_it_is(reasons: list[str], outcome: str) -> None:
    """Alerts go by it: what a caller does wrong must not wake anybody."""
    assert {telemetry.outcome_of(reason) for reason in reasons} == {outcome}


def test_every_process_tells_of_its_own_cpu_and_memory() -> None:
    names = {family.name for family in meters.registry(Source()).collect()}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "penstock_execution_seconds"} <= names


def test_the_same_by_otlp() -> None:
    source = Source()
    source.took.observe(5_000_000, 3)
    source.took.observe(500_000_000)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(source)
    (resource,) = otlp_metrics.converted(registry.collect(), Resource({}), 10, 20).resource_metrics
    by_name = {metric.name: metric.data for scope in resource.scope_metrics for metric in scope.metrics}
    histogram, count, gauge = (by_name[f"penstock_{name}"] for name in ("execution_seconds", "requests", "queue_rows"))
    assert isinstance(histogram, Histogram)
    (point,) = histogram.data_points
    assert isinstance(point, HistogramDataPoint)
    assert (list(point.bucket_counts), list(point.explicit_bounds)) == ([0, 3, 0, 1], [0.001, 0.01, 0.1])
    assert (point.count, round(point.sum, 6), point.start_time_unix_nano, point.time_unix_nano) == (4, 0.515, 10, 20)
    assert isinstance(count, Sum)
    assert count.is_monotonic
    assert [point.value for point in count.data_points] == [3, 1]
    assert isinstance(gauge, Gauge)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_environment_says_whether_metrics_are_sent(environment: dict[str, str], wanted: bool) -> None:
    """A general endpoint is often a collector of traces alone, such as Jaeger."""
    assert otlp_metrics.wanted(environment) is wanted


class Collector(MetricExporter):
    """Keeps what it is sent; `answer`: what it says of that."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[MetricsData] = []
        self.answer = MetricExportResult.SUCCESS

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: Any) -> MetricExportResult:
        self.taken.append(metrics_data)
        return self.answer

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None: ...


def test_they_are_sent_now_and_then_and_at_the_end() -> None:
    collector = Collector()
    pusher = otlp_metrics.Pusher(meters.registry(Source()), "me", collector, interval_s=0.01)
    deadline = time.monotonic() + 5
    while len(collector.taken) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pusher.close()
    after = len(collector.taken)
    (resource,) = collector.taken[-1].resource_metrics
    assert resource.resource.attributes["service.name"] == "me"
    time.sleep(0.05)
    assert len(collector.taken) == after


def test_a_collector_that_takes_none_is_told_of_once() -> None:
    collector = Collector()
    collector.answer = MetricExportResult.FAILURE
    with structlog.testing.capture_logs() as told:
        pusher = otlp_metrics.Pusher(meters.registry(), "me", collector, interval_s=0.005)
        deadline = time.monotonic() + 5
        while len(collector.taken) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        pusher.close()
    assert [line["event"] for line in told] == ["metrics cannot be sent by OTLP"]
