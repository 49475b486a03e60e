"""The spans of a request at the gateway, built when it is over, from the times that were taken on its way.

    POST /v2/models/{model}/infer, or inference.GRPCInferenceService/ModelInfer      under what the caller says
    ├── admission     verified, routed, decoded, admitted
    ├── batch wait    until its batch left
    ├── publish       until the broker had it; under it, in the worker's process, what it ran in
    ├── queue         until the model began
    ├── compute       linked with the span of the execution
    └── reply         back, cut, rendered, handed to the connection

Whether a request is sampled is decided by its trace id before any of this; for one that is not, nothing is made. One
that fails, or is late, is told all the same, up to `FAILURES_PER_S` a second: its times were taken like any other's.
"""

from __future__ import annotations

import hashlib
import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv._incubating.attributes import rpc_attributes as rpc
from opentelemetry.semconv.attributes import http_attributes as http
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_SCHEME
from opentelemetry.trace import SpanKind

from core import telemetry, trace
from core.errors import PenstockError
from core.otel import sampling
from core.settings import Settings
from core.spans import Attributes, Span, Spans, clock_offset
from core.status import status_of
from core.telemetry import CANCELLED, FAILED, LATE, OK, outcome_of
from core.topology import infer_queue
from core.trace import TRACE_HALF, Ahead, Context, Sampling
from gateway.exchange import GRPC, Exchange

if TYPE_CHECKING:
    from gateway.batching.entry import Entry
    from gateway.routing import Route

SECOND = 1_000_000_000
MILLISECOND = 1e6
FAILURES_PER_S = 50
"""Failed or late requests that are told of although they were not sampled: an outage must not cost more than this."""
RPC_SERVICE, RPC_METHOD = "inference.GRPCInferenceService", "ModelInfer"
NOTHING: Attributes = {}
RATIO, PARENT, FLOOR, FAILURE = "ratio", "parent", "floor", "failure"


class Trace:
    """A sampled request: the ids of the spans that others must know, before these are built."""

    __slots__ = ("compute_id", "ended", "publish_id", "span_id", "why")

    def __init__(self, why: str) -> None:
        self.span_id = trace.new_id(64)
        self.publish_id = trace.new_id(64)
        self.compute_id = trace.new_id(64)
        self.why = why
        self.ended = 0
        """When it had its answer, in monotonic ns."""


def begin(exchange: Exchange, why: str) -> Ahead:
    """It is traced: the spans that its execution has to do with."""
    exchange.trace = begun = Trace(why)
    trace_id, state = exchange.trace_id, state_of(exchange)
    return Ahead(Context(trace_id, begun.publish_id, True, state), Context(trace_id, begun.compute_id, True, state))


class Sampled:
    """What decides for the requests of one model."""

    __slots__ = ("_bound", "_floor_at", "_sampling")

    def __init__(self, sampling: Sampling, model: str) -> None:
        self._sampling = sampling
        self._bound = sampling.bound(model)
        self._floor_at = 0 if sampling.floor and self._bound else 1 << 63
        """When the next request is taken whatever its id, in monotonic ns."""

    def why(self, exchange: Exchange) -> str:
        """Why this request is traced; '': it is not."""
        origin = exchange.caller.origin
        if origin is not None and self._sampling.parent_based:
            return PARENT if origin.sampled else ""
        if exchange.trace_id & TRACE_HALF < self._bound:
            return RATIO
        if exchange.received < self._floor_at:
            return ""
        self._floor_at = exchange.received + SECOND
        return FLOOR


class Tracer:
    """Of one gateway."""

    def __init__(self, spans: Spans, sampling: Sampling) -> None:
        self._spans = spans
        self._sampling = sampling
        self._unrouted = Sampled(sampling, "")
        self._second = 0
        self._failures = 0

    def sampled(self, model: str) -> Sampled:
        return Sampled(self._sampling, model)

    def end(
        self,
        exchange: Exchange,
        route: Route | None,
        entry: Entry | None,
        error: PenstockError | None,
        left: bool = False,
    ) -> None:
        """It has its answer, or its client has `left`: tell of it, if it is sampled or has failed."""
        begun = exchange.trace
        outcome = CANCELLED if left else OK if error is None else outcome_of(error.reason)
        if begun is None:
            why = self._unrouted.why(exchange) if route is None else ""
            why = why if why in (PARENT, RATIO) else FAILURE if outcome in (FAILED, LATE) else ""
            if not why or not self._may_tell():  # whoever asks for what is not there must not push out what is
                return
            begun = Trace(why)
        exchange.trace = None
        now = begun.ended or time.monotonic_ns()
        self._spans.emit(_Telling(exchange, route, entry, error, outcome, begun, now).spans())

    def _may_tell(self) -> bool:
        second = time.monotonic_ns() // SECOND
        if second != self._second:
            self._second, self._failures = second, 0
        self._failures += 1
        return self._failures <= FAILURES_PER_S


def tracer_of(spans: Spans | None, settings: Settings) -> Tracer | None:
    """None where nothing is traced."""
    return None if spans is None else Tracer(spans, sampling(os.environ, settings.trace_ratios))


class _Telling:
    """The spans of one request."""

    def __init__(
        self,
        exchange: Exchange,
        route: Route | None,
        entry: Entry | None,
        error: PenstockError | None,
        outcome: str,
        begun: Trace,
        now: int,
    ) -> None:
        self._exchange = exchange
        self._route = route
        self._entry = entry
        self._error = error
        self._outcome = outcome
        self._begun = begun
        self._now = now
        self._offset = clock_offset()
        self._state = state_of(exchange)
        self._server = Context(exchange.trace_id, begun.span_id, True, self._state)
        self._made: list[Span] = []

    def spans(self) -> list[Span]:
        exchange, entry = self._exchange, self._entry
        admitted = entry.submitted if entry is not None and entry.submitted else self._now
        self._stage("admission", exchange.received, admitted)
        if entry is not None and entry.submitted:
            self._batch(entry)
        self._root()
        return self._made

    def _batch(self, entry: Entry) -> None:
        ride = entry.ride
        if ride is None:
            self._stage("batch wait", entry.submitted, self._now)
            return
        size: Attributes = {
            telemetry.BATCH_SIZE.name: ride.rows,
            telemetry.BATCH_MEMBERS.name: ride.members,
            telemetry.CLOSE_REASON.name: ride.reason,
        }
        self._stage("batch wait", entry.submitted, ride.dispatched, size)
        timing = ride.timing
        if timing is None or not timing.compute:
            self._publish(ride.dispatched, ride.dispatched, timing is not None and timing.published > 0)
            self._stage("queue", ride.dispatched, self._now)
            return
        started = _within(ride.dispatched, timing.started, self._now - timing.compute)
        published = _within(ride.dispatched, timing.published, started or self._now)
        at = published or started or ride.dispatched  # a broker may confirm what a worker has begun with already
        self._publish(ride.dispatched, at if timing.published else ride.dispatched, timing.published > 0)
        begun = started or min(at + timing.queue, self._now)
        ended = min(begun + timing.compute, self._now)
        self._stage("queue", at, begun)
        link = trace.unpack(timing.span)
        parts: Attributes = {
            telemetry.INPUT_MS.name: timing.compute_input / MILLISECOND,
            telemetry.INFER_MS.name: timing.compute_infer / MILLISECOND,
            telemetry.OUTPUT_MS.name: timing.compute_output / MILLISECOND,
        }
        self._stage("compute", begun, ended, parts, link, self._begun.compute_id)
        self._stage("reply", ended, self._now)

    def _stage(
        self,
        name: str,
        start: int,
        end: int,
        attributes: Attributes = NOTHING,
        link: Context | None = None,
        span_id: int = 0,
    ) -> None:
        context = Context(self._exchange.trace_id, span_id or trace.new_id(64), True, self._state)
        links = () if link is None else (link,)
        self._add(name, context, self._server, start, end, SpanKind.INTERNAL, attributes, links)

    def _publish(self, start: int, end: int, broker: bool) -> None:
        """In one process it takes no time, and there is no broker; the execution belongs under it all the same."""
        context = Context(self._exchange.trace_id, self._begun.publish_id, True, self._state)
        attributes: Attributes = NOTHING
        if broker and self._route is not None:
            version = self._route.version
            attributes = {
                messaging.MESSAGING_SYSTEM: "rabbitmq",
                messaging.MESSAGING_OPERATION_TYPE: "send",
                messaging.MESSAGING_OPERATION_NAME: "publish",
                messaging.MESSAGING_DESTINATION_NAME: infer_queue(version.model, version.version),
            }
        kind = SpanKind.PRODUCER if broker else SpanKind.INTERNAL
        self._add("publish", context, self._server, start, end, kind, attributes)

    def _root(self) -> None:
        exchange = self._exchange
        parent = exchange.caller.origin
        name, attributes = _called(exchange, self._error)
        if self._route is not None:
            attributes[telemetry.MODEL.name] = self._route.name
            attributes[telemetry.VERSION.name] = self._route.number
        if self._entry is not None:
            attributes[telemetry.TENANT.name] = hashed(self._entry.tenant)
            attributes[telemetry.ROWS.name] = self._entry.rows
            if self._entry.deadline:
                attributes[telemetry.DEADLINE_LEFT.name] = (self._entry.deadline - self._now) / MILLISECOND
        attributes[telemetry.OUTCOME.name] = self._outcome
        attributes[telemetry.SAMPLED_FOR.name] = self._begun.why
        if exchange.caller.request_id:
            attributes[telemetry.REQUEST_ID.name] = exchange.caller.request_id
        error = CANCELLED if self._outcome == CANCELLED else self._error.reason if self._error is not None else ""
        if error:
            attributes[ERROR_TYPE] = error
        told = error if self._outcome in (FAILED, LATE, CANCELLED) else ""
        self._add(name, self._server, parent, exchange.received, self._now, SpanKind.SERVER, attributes, (), told)

    def _add(self, name: str, context: Context, parent: Context | None, start: int, end: int, *more: Any) -> None:
        """A `Span`, but for its times: monotonic ones."""
        self._made.append(Span(name, context, parent, start + self._offset, end + self._offset, *more))


def _called(exchange: Exchange, error: PenstockError | None) -> tuple[str, dict[str, str | int | float | bool]]:
    """A server span's name, and what of it the protocol decides."""
    if exchange.transport == GRPC:
        code = "OK" if error is None else status_of(error).grpc
        method = f"{RPC_SERVICE}/{RPC_METHOD}"
        return method, {
            rpc.RPC_SYSTEM_NAME: "grpc",
            rpc.RPC_METHOD: method,
            rpc.RPC_RESPONSE_STATUS_CODE: code,
        }
    versions = "/versions/{version}" if exchange.version else ""
    route = f"/v2/models/{{model}}{versions}/infer"
    path = f"/v2/models/{exchange.model[:128]}{f'/versions/{exchange.version[:128]}' if exchange.version else ''}/infer"
    return f"POST {route}", {
        http.HTTP_REQUEST_METHOD: "POST",
        http.HTTP_ROUTE: route,
        http.HTTP_RESPONSE_STATUS_CODE: 200 if error is None else status_of(error).http,
        URL_PATH: path,
        URL_SCHEME: "http",
    }


def state_of(exchange: Exchange) -> str:
    """The tracestate that its caller sent along."""
    return exchange.caller.origin.state if exchange.caller.origin is not None else ""


def _within(first: int, time_ns: int, last: int) -> int:
    """The time, if it is known, and may be so; else 0."""
    return time_ns if first <= time_ns <= last else 0


@lru_cache(4096)
def hashed(tenant: str) -> str:
    """A tenant as traces name it: traces may leave the house."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:16]
