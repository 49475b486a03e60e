"""Finished spans → OpenTelemetry's exporter. Configured by the standard OTEL_* variables.

Spans are built when all is known of them, from times that were taken on the way: no SDK call is made while a request is
under way, and none at all for one that is not sampled. They go to the SDK's own batch processor, which exports them
from a thread. Where the collector is away, `OTEL_BSP_MAX_QUEUE_SIZE` spans wait; a trace for which there is no room is
dropped whole, and counted.

    OTEL_EXPORTER_OTLP_ENDPOINT, …_TRACES_ENDPOINT   where to: without one nothing is traced
    OTEL_EXPORTER_OTLP_PROTOCOL, …_TRACES_PROTOCOL   grpc (the default) or http/protobuf
    OTEL_TRACES_EXPORTER                             otlp (then the endpoint may be left out), or none
    OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG     as the SDKs have them; default: parentbased_traceidratio 0.01
    OTEL_SDK_DISABLED, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*, OTEL_EXPORTER_OTLP_*   likewise
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from core.trace import Context, Sampling

log = structlog.get_logger(__name__)

T = TypeVar("T")
Value = str | bool | int | float
Attributes = Mapping[str, Value]

DEFAULT_RATIO = 0.01
LEAVE_S = 2.0
"""What a process that ends gives its last spans to leave."""


class Spans:
    """Where finished spans go. `emitted` have been taken, `dropped` had no room, `failed` could not be delivered."""

    def __init__(self, exporter: SpanExporter, service: str, room: int | None = None) -> None:
        """`room`: spans that may wait; None: OTEL_BSP_MAX_QUEUE_SIZE."""
        self._resource = resource(service)
        self._scope = InstrumentationScope("penstock")
        self._counting = _Counting(exporter)
        self._room = room or _count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        at_once = min(self._room, _count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512))
        self._processor = BatchSpanProcessor(self._counting, self._room, max_export_batch_size=at_once)
        self.emitted = self.dropped = 0

    @property
    def exported(self) -> int:
        return self._counting.delivered

    @property
    def failed(self) -> int:
        return self._counting.failed

    def emit(self, spans: Sequence[ReadableSpan]) -> bool:
        """Have the spans of one trace exported: all of them, or where there is no room none. Of one thread."""
        waiting = self.emitted - self._counting.delivered - self._counting.failed
        if waiting + len(spans) > self._room:
            self.dropped += len(spans)
            return False
        self.emitted += len(spans)
        for span in spans:
            self._processor.on_end(span)
        return True

    def span(
        self,
        name: str,
        context: Context,
        parent: Context | None,
        start: int,
        end: int,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        links: Sequence[Context] = (),
        error: str = "",
    ) -> ReadableSpan:
        """A finished span. `start`, `end`: Unix nanoseconds. `error`: what went wrong, '' = nothing."""
        return ReadableSpan(
            name,
            _span_context(context),
            None if parent is None else _span_context(parent),
            self._resource,
            attributes or {},
            links=[Link(_span_context(link)) for link in links],
            kind=kind,
            status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.UNSET),
            start_time=start,
            end_time=max(start, end),
            instrumentation_scope=self._scope,
        )

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


def _span_context(context: Context) -> SpanContext:
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(context.trace_id, context.span_id, False, TraceFlags(TraceFlags.SAMPLED), state)


class _Counting(SpanExporter):
    """An exporter that counts, and says once that it cannot deliver, and once that it can again: the library would say
    so for each try. What it raises is a failure."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._away = False
        self.delivered = self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
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


def resource(service: str) -> Resource:
    """What this process is, with what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of it."""
    names = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or service, "service.namespace": "penstock"}
    host = os.uname().nodename
    return Resource.create(names | {"host.name": host, "service.instance.id": f"{host}-{os.getpid()}"})


def clock_offset() -> int:
    """Unix nanoseconds − monotonic ones, now."""
    return time.time_ns() - time.monotonic_ns()


# --- by the environment -------------------------------------------------------------------------------------------


def from_environment(service: str) -> Spans | None:
    """Where this process's spans go; None: it traces nothing. `service`: its name, if OTEL_SERVICE_NAME has none."""
    return begun(lambda: Spans(_otlp(os.environ), service), "traces") if wanted(os.environ) else None


def begun(make: Callable[[], T], what: str) -> T | None:
    """What an exporter is made into; None, and a line in the log, where OTEL_* says what the library cannot take. The
    library's own lines are left out: whoever exports tells by itself, once."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        return make()
    except Exception as error:
        log.warning("not exported: OTEL_* variables that cannot be taken", what=what, why=str(error)[:200])
        return None


def disabled(environment: Mapping[str, str]) -> bool:
    """Whether nothing at all is to be exported."""
    return environment.get("OTEL_SDK_DISABLED", "").lower() == "true"


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether spans are to be exported at all."""
    if disabled(environment):
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        log.warning("unknown OTEL_TRACES_EXPORTER: otlp or none; nothing is traced", given=exporter[:64])
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in names))


def _otlp(environment: Mapping[str, str]) -> SpanExporter:
    if protocol(environment, "TRACES") == "grpc":
        from core.otlp_spans import QuickExporter

        return QuickExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp()


def protocol(environment: Mapping[str, str], signal: str) -> str:
    """`grpc` or `http/protobuf`, for TRACES or METRICS."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    given = next((environment[name] for name in names if environment.get(name)), "grpc")
    if given not in ("grpc", "http/protobuf"):
        log.warning("unknown OTLP protocol: grpc or http/protobuf; grpc is taken", given=given[:64])
        return "grpc"
    return given


def sampling(environment: Mapping[str, str], by_model: Mapping[str, float]) -> Sampling:
    """As OTEL_TRACES_SAMPLER and _ARG say; an unknown sampler or ratio is logged, and the default taken."""
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    ratio = _ratio(argument)
    fixed = {"always_on": 1.0, "always_off": 0.0, "traceidratio": 1.0 if ratio is None else ratio}
    base = name.removeprefix("parentbased_")
    if name and base in fixed:
        return Sampling(fixed[base], name != base, floor=False, by_model=by_model)
    if name:
        log.warning("unknown OTEL_TRACES_SAMPLER: the default is taken", given=name[:64])
    return Sampling(DEFAULT_RATIO if ratio is None else ratio, True, floor=ratio is None, by_model=by_model)


def _ratio(text: str) -> float | None:
    if not text:
        return None
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if 0.0 <= ratio <= 1.0:
        return ratio
    log.warning("OTEL_TRACES_SAMPLER_ARG is no ratio from 0 to 1", given=text[:64])
    return None
