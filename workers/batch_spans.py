"""One span for each execution that has a traced request aboard, made where its replies pass, linked with each of them.

    publish (at the gateway, of the first traced member) ─► process MODEL
    compute (at the gateway, of every traced member) ◄··link··► process MODEL

A worker answers the batches of one execution in one go, and each answer must name the span: so that gets its id with
the first of them, and is finished a moment later, when the others have passed.
"""

from __future__ import annotations

import asyncio

from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import SpanKind

from core import telemetry, trace
from core.spans import Span, Spans, clock_offset
from core.topology import infer_queue
from core.trace import Context
from repository.records import Version
from workers.messages import Batch, Failure, Reply, Timing

GATHER_S = 0.05
"""Replies of one execution come within this."""
LINKS = 1024
"""Links of one span: more than an execution has rows, but for a model that takes very many."""
MILLISECOND = 1e6


class _Open:
    """The execution whose replies are passing."""

    def __init__(self, timing: Timing, parent: Context) -> None:
        self.timing = timing
        self.parent = parent
        self.context = Context(parent.trace_id, trace.new_id(64), True, parent.state)
        self.members: list[Context] = []
        self.batches = 0
        self.attempt = 0
        self.error = ""


class BatchSpans:
    """Of the endpoint of one version. `broker`: whether its batches come by one. Of one event loop."""

    def __init__(self, version: Version, spans: Spans, broker: bool) -> None:
        self._version = version
        self._spans = spans
        self._broker = broker
        self._open: _Open | None = None
        self._timer: asyncio.TimerHandle | None = None

    def observe(self, batch: Batch, reply: Reply, parent: Context | None = None, attempt: int = 0) -> None:
        """A reply passes: note the span of its execution in it. `parent`: what its message says that it belongs under;
        where it says nothing, the first traced member does."""
        told = [member.trace for member in batch.members if member.trace]
        timing = reply.timing
        if not told or not timing.execution:
            return
        members = [context for each in told if (context := trace.unpack(each)) is not None]
        if not members:
            return
        opened = self._open
        if opened is None or opened.timing.execution != timing.execution:
            self.finish()
            opened = self._open = _Open(timing, parent or members[0])
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.finish)
        opened.members += members
        opened.batches += 1
        opened.attempt = max(opened.attempt, attempt)
        opened.error = opened.error or _error(reply)
        timing.span = trace.pack(opened.context)

    def finish(self) -> None:
        """Emit what is open."""
        if self._timer is not None:
            self._timer.cancel()
        opened, self._open, self._timer = self._open, None, None
        if opened is not None:
            self._spans.emit([self._span(opened)])

    def _span(self, opened: _Open) -> Span:
        version, timing = self._version, opened.timing
        start = timing.started + clock_offset()
        attributes: dict[str, str | int | float | bool] = {
            telemetry.MODEL.name: version.model,
            telemetry.VERSION.name: str(version.version),
            telemetry.BATCH_SIZE.name: timing.executed_rows,
            telemetry.BATCH_MEMBERS.name: len(opened.members),
            telemetry.INPUT_MS.name: timing.compute_input / MILLISECOND,
            telemetry.INFER_MS.name: timing.compute_infer / MILLISECOND,
            telemetry.OUTPUT_MS.name: timing.compute_output / MILLISECOND,
            messaging.MESSAGING_OPERATION_TYPE: "process",
            messaging.MESSAGING_OPERATION_NAME: "process",
            messaging.MESSAGING_BATCH_MESSAGE_COUNT: timing.executed_batches,
        }
        if self._broker:
            attributes[messaging.MESSAGING_SYSTEM] = "rabbitmq"
            attributes[messaging.MESSAGING_DESTINATION_NAME] = infer_queue(version.model, version.version)
        if opened.attempt:
            attributes[telemetry.ATTEMPT.name] = opened.attempt
        if opened.error:
            attributes[ERROR_TYPE] = opened.error
        return Span(
            f"process {version.model}",
            opened.context,
            opened.parent,
            start,
            start + timing.compute,
            SpanKind.CONSUMER,
            attributes,
            opened.members[:LINKS],
            opened.error,
        )


def _error(reply: Reply) -> str:
    """The reason of the first failure in it."""
    return next((result.reason for result in reply.results if isinstance(result, Failure)), "")
