"""Where finished spans go: all of a trace or nothing, counted, and never in anybody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

from core import spans
from core.spans import Spans, sampling
from core.trace import Context, Sampling

PARENT = Context(7, 8, True, "vendor=1")


class Collector(SpanExporter):
    """Takes spans while it is `open`; `answer`: what it says of them."""

    def __init__(self) -> None:
        self.taken: list[ReadableSpan] = []
        self.open = threading.Event()
        self.open.set()
        self.answer = SpanExportResult.SUCCESS
        self.error: Exception | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.open.wait()
        if self.error is not None:
            raise self.error
        self.taken += spans
        return self.answer


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.open.set()


def made(into: Spans, number: int = 1) -> list[ReadableSpan]:
    return [into.span(f"span {at}", Context(7, 100 + at), PARENT, 10, 20) for at in range(number)]


def test_a_span_is_what_it_was_said_to_be(collector: Collector) -> None:
    sink = Spans(collector, "me")
    sink.emit([sink.span("work", Context(7, 9), PARENT, 30, 20, attributes={"a": 1}, links=[PARENT], error="late")])
    sink.close()
    (span,) = collector.taken
    assert (span.name, span.start_time, span.end_time) == ("work", 30, 30)
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.span_id, span.parent.span_id, span.parent.trace_state.get("vendor")) == (9, 8, "1")
    assert dict(span.attributes or {}) == {"a": 1}
    assert [link.context.span_id for link in span.links] == [8]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "late")
    assert span.resource.attributes["service.name"] == "me"
    assert (sink.exported, sink.dropped, sink.failed) == (1, 0, 0)


def test_a_trace_without_room_is_dropped_whole(collector: Collector) -> None:
    """What waits for a collector that hangs is bounded, and what was dropped is counted."""
    collector.open.clear()
    sink = Spans(collector, "me", room=10)
    assert sink.emit(made(sink, 8))
    assert not sink.emit(made(sink, 3))
    assert sink.emit(made(sink, 2))
    assert not sink.emit(made(sink, 1))
    assert sink.dropped == 4
    collector.open.set()
    sink.close()
    assert (sink.exported, len(collector.taken)) == (10, 10)


@pytest.mark.parametrize("error", [None, ConnectionError("away")])
def test_a_collector_that_fails_is_told_of_once(collector: Collector, error: Exception | None) -> None:
    collector.answer, collector.error = SpanExportResult.FAILURE, error
    counting = spans._Counting(collector)
    sink = Spans(collector, "me")
    with structlog.testing.capture_logs() as told:
        for _ in range(3):
            counting.export(made(sink))
        collector.answer, collector.error = SpanExportResult.SUCCESS, None
        counting.export(made(sink))
        counting.export(made(sink))
    assert [line["event"] for line in told] == ["spans cannot be exported", "spans are exported again"]
    assert (counting.failed, counting.delivered) == (3, 2)
    sink.close()


def test_a_process_ends_although_its_collector_hangs(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "LEAVE_S", 0.05)
    collector.open.clear()
    sink = Spans(collector, "me")
    sink.emit(made(sink))
    sink.close()
    assert sink.exported == 0


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4317"}, False),
    ],
)
def test_the_environment_says_whether_anything_is_traced(environment: dict[str, str], wanted: bool) -> None:
    assert spans.wanted(environment) is wanted


DEFAULT = Sampling(0.01, True, floor=True)


@pytest.mark.parametrize(
    ("sampler", "argument", "expected"),
    [
        ("", "", DEFAULT),
        ("", "0.5", Sampling(0.5)),
        ("always_on", "", Sampling(1.0, parent_based=False)),
        ("always_off", "", Sampling(0.0, parent_based=False)),
        ("traceidratio", "0.1", Sampling(0.1, parent_based=False)),
        ("traceidratio", "", Sampling(1.0, parent_based=False)),
        ("parentbased_always_on", "", Sampling(1.0)),
        ("parentbased_always_off", "", Sampling(0.0)),
        ("parentbased_traceidratio", "0", Sampling(0.0)),
        ("parentbased_traceidratio", "many", Sampling(1.0)),
        ("parentbased_traceidratio", "1.5", Sampling(1.0)),
        ("jaeger_remote", "", DEFAULT),
    ],
)
def test_the_environment_says_which_requests_are_traced(sampler: str, argument: str, expected: Sampling) -> None:
    """An argument that is none counts as missing, as OpenTelemetry has it."""
    assert sampling({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}, {}) == expected


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            "http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "carrier pigeon"}, "grpc"),
    ],
)
def test_the_environment_says_how_spans_travel(environment: dict[str, str], protocol: str) -> None:
    assert spans.protocol(environment, "TRACES") == protocol
