"""Where finished spans go: all of a trace or nothing, counted, and never in anybody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import structlog
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from core import spans
from core.otlp_spans import readable
from core.spans import Span, Spans
from core.trace import Context
from tests.kept_spans import RESOURCE

PARENT = Context(7, 8, True, "vendor=1")


class Collector:
    """Takes spans while it is `open`; `answer`: what it says of them."""

    def __init__(self) -> None:
        self.taken: list[Span] = []
        self.calls = 0
        self.open = threading.Event()
        self.open.set()
        self.answer = SpanExportResult.SUCCESS
        self.error: Exception | None = None

    def export(self, spans: Sequence[Span]) -> SpanExportResult:
        self.open.wait()
        if self.error is not None:
            raise self.error
        self.calls += 1
        self.taken += spans
        return self.answer

    def shutdown(self) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.open.set()


def made(number: int = 1) -> list[Span]:
    return [Span(f"span {at}", Context(7, 100 + at), PARENT, 10, 20) for at in range(number)]


def test_a_span_is_what_it_was_said_to_be() -> None:
    told = Span("work", Context(7, 9), PARENT, 30, 20, SpanKind.INTERNAL, {"a": 1}, [PARENT], "late")
    span = readable(told, RESOURCE)
    assert (span.name, span.start_time, span.end_time) == ("work", 30, 30)
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.span_id, span.parent.span_id, span.parent.trace_state.get("vendor")) == (9, 8, "1")
    assert dict(span.attributes or {}) == {"a": 1}
    assert [link.context.span_id for link in span.links] == [8]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "late")
    assert span.resource.attributes["service.name"] == "test"


def test_traces_leave_together(collector: Collector) -> None:
    """As many spans in one export as OTEL_BSP_MAX_EXPORT_BATCH_SIZE says, or about that."""
    sink = Spans(collector)
    for _ in range(10):
        assert sink.emit(made(8))
    sink.close()
    assert (sink.exported, sink.dropped, sink.failed) == (80, 0, 0)
    assert (len(collector.taken), collector.calls) == (80, 1)


def test_a_trace_without_room_is_dropped_whole(collector: Collector) -> None:
    """What waits for a collector that hangs is bounded, and what was dropped is counted."""
    collector.open.clear()
    sink = Spans(collector, room=10)
    assert sink.emit(made(8))
    assert not sink.emit(made(3))
    assert sink.emit(made(2))
    assert not sink.emit(made(1))
    assert sink.dropped == 4
    collector.open.set()
    sink.close()
    assert (sink.exported, len(collector.taken)) == (10, 10)


@pytest.mark.parametrize("error", [None, ConnectionError("away")])
def test_a_collector_that_fails_is_told_of_once(collector: Collector, error: Exception | None) -> None:
    collector.answer, collector.error = SpanExportResult.FAILURE, error
    counting = spans._Counting(collector)
    sink = Spans(collector)
    with structlog.testing.capture_logs() as told:
        for _ in range(3):
            counting.export([spans._Parcel(made())])
        collector.answer, collector.error = SpanExportResult.SUCCESS, None
        counting.export([spans._Parcel(made())])
        counting.export([spans._Parcel(made())])
    assert [line["event"] for line in told] == ["spans cannot be exported", "spans are exported again"]
    assert (counting.failed, counting.delivered) == (3, 2)
    sink.close()


def test_a_process_ends_although_its_collector_hangs(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "LEAVE_S", 0.05)
    collector.open.clear()
    sink = Spans(collector)
    sink.emit(made())
    sink.close()
    assert sink.exported == 0
