"""Finished spans → an exporter.

Spans are built when all is known of them, from times that were taken on the way: no SDK call is made while a request is
under way, and none at all for one that is not sampled. They go to the SDK's own batch processor, which exports them
from a thread; a trace's as one parcel, for it takes each thing by a lock and a wake-up. Where the collector is away,
`OTEL_BSP_MAX_QUEUE_SIZE` spans wait; a trace for which there is no room is dropped whole, and counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from core.trace import Context

log = structlog.get_logger(__name__)

Value = str | bool | int | float
Attributes = Mapping[str, Value]

LEAVE_S = 2.0
"""What a process that ends gives its last spans to leave."""
SPANS_A_TRACE = 8
"""About as many as one process tells of one request; the processor counts parcels, its variables mean spans."""


class Span(NamedTuple):
    """A finished span. `start`, `end`: Unix nanoseconds. `error`: what went wrong, '' = nothing."""

    name: str
    context: Context
    parent: Context | None
    start: int
    end: int
    kind: SpanKind = SpanKind.INTERNAL
    attributes: Attributes = {}
    links: Sequence[Context] = ()
    error: str = ""


class Exporter(Protocol):
    """What delivers spans, as the SDK's exporters do; it may block, and raise."""

    def export(self, spans: Sequence[Span]) -> SpanExportResult: ...

    def shutdown(self) -> None: ...


class _Parcel:
    """Spans that go together, to the batch processor one span that is sampled."""

    __slots__ = ("spans",)
    context = SpanContext(1, 1, False, TraceFlags(TraceFlags.SAMPLED))

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans


class Spans:
    """Where finished spans go. `emitted` have been taken, `dropped` had no room, `failed` could not be delivered."""

    def __init__(self, exporter: Exporter, room: int | None = None) -> None:
        """`room`: spans that may wait; None: OTEL_BSP_MAX_QUEUE_SIZE."""
        self._counting = _Counting(exporter)
        self._room = room or _count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        at_once = min(self._room, _count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512))
        parcels = max(1, at_once // SPANS_A_TRACE)
        self._processor = BatchSpanProcessor(self._counting, self._room, max_export_batch_size=parcels)  # type: ignore[arg-type]  # it looks at no more than a context
        self.emitted = self.dropped = 0

    @property
    def exported(self) -> int:
        return self._counting.delivered

    @property
    def failed(self) -> int:
        return self._counting.failed

    def emit(self, spans: Sequence[Span]) -> bool:
        """Have the spans of one trace exported: all of them, or where there is no room none. Of one thread."""
        waiting = self.emitted - self._counting.delivered - self._counting.failed
        if waiting + len(spans) > self._room:
            self.dropped += len(spans)
            return False
        self.emitted += len(spans)
        self._processor.on_end(_Parcel(spans))  # type: ignore[arg-type]
        return True

    def close(self) -> None:
        """Send what waits, for `LEAVE_S` seconds at the most. Blocks."""
        leaving = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)


def _count(variable: str, default: int) -> int:
    """A number of the environment; one that is none is logged, and the default taken."""
    given = os.environ.get(variable, "").strip()
    if given and not (given.isdecimal() and int(given)):
        log.warning("no whole number above 0: the default is taken", variable=variable, given=given[:64])
        return default
    return int(given) if given else default


class _Counting:
    """An exporter of parcels that counts, and says once that it cannot deliver, and once that it can again: the library
    would say so for each try. What it raises is a failure."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._away = False
        self.delivered = self.failed = 0

    def export(self, parcels: Sequence[_Parcel]) -> SpanExportResult:
        spans = [span for parcel in parcels for span in parcel.spans]
        why = "the collector does not take them"
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            why, result = str(error)[:200], SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        else:
            self.failed += len(spans)
        self._tell(result is not SpanExportResult.SUCCESS, why)
        return result

    def _tell(self, away: bool, why: str) -> None:
        if away and not self._away:
            log.warning("spans cannot be exported", why=why, failed=self.failed)
        elif self._away and not away:
            log.info("spans are exported again", failed=self.failed)
        self._away = away

    def shutdown(self) -> None:
        self._exporter.shutdown()


def clock_offset() -> int:
    """Unix nanoseconds − monotonic ones, now."""
    return time.time_ns() - time.monotonic_ns()
