"""One span for each execution with a traced request aboard, linked with all of them, whatever batches they came in."""

from __future__ import annotations

import asyncio

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from core import trace
from core.errors import ModelFailed
from core.trace import Context
from tests.kept_spans import Kept
from tests.workers.samples import batch_of, rows, version
from workers.batch_spans import BatchSpans
from workers.messages import Batch, Failure, Output, Reply, Timing, failure_of

PUBLISH = Context(0xAA, 0xAB, True, "vendor=1")


def traced(*members: Context | None) -> Batch:
    batch = batch_of(*[rows(1.0) for _ in members])
    for member, context in zip(batch.members, members, strict=True):
        member.trace = b"" if context is None else trace.pack(context)
    return batch


def reply_of(batch: Batch, execution: int, *, batches: int = 1, failure: Failure | None = None) -> Reply:
    results: list[list[Output] | Failure] = [failure or [] for _ in batch.members]
    timing = Timing(1, 1000, 2000, 3000, 5, batches, started=10_000, execution=execution)
    return Reply(batch.id, results, timing)


def ids(span: ReadableSpan) -> tuple[int, int, int]:
    """Of the trace, the span, the parent."""
    assert span.context is not None
    assert span.parent is not None
    return span.context.trace_id, span.context.span_id, span.parent.span_id


async def test_an_execution_is_linked_with_all_its_members_both_ways() -> None:
    """They came in two batches, of which one has a member that is not traced."""
    kept = Kept()
    spans = BatchSpans(version(), kept, broker=True)
    members = [Context(0xAA, 1), Context(0xBB, 2), Context(0xCC, 3)]
    first, second = traced(members[0], None, members[1]), traced(members[2])
    replies = [reply_of(first, 7, batches=2), reply_of(second, 7, batches=2)]
    spans.observe(first, replies[0], PUBLISH)
    spans.observe(second, replies[1], Context(0xCC, 9))
    spans.finish()
    (span,) = kept.kept
    trace_id, span_id, parent_id = ids(span)
    assert (trace_id, parent_id) == (PUBLISH.trace_id, PUBLISH.span_id)
    assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [(m[0], m[1]) for m in members]
    assert {reply.timing.span for reply in replies} == {trace.pack(Context(trace_id, span_id))}
    assert (span.name, span.kind) == ("process m", SpanKind.CONSUMER)
    assert (span.end_time or 0) - (span.start_time or 0) == 6000
    attributes = dict(span.attributes or {})
    assert attributes["messaging.batch.message_count"] == 2
    assert attributes["penstock.batch.rows"] == 5
    assert attributes["penstock.batch.members"] == 3
    assert attributes["messaging.destination.name"] == "infer.m.1"
    assert span.context is not None
    assert span.context.trace_state.get("vendor") == "1"


async def test_the_next_execution_has_the_next_span() -> None:
    kept = Kept()
    spans = BatchSpans(version(), kept, broker=True)
    for execution in (1, 2):
        batch = traced(Context(execution, execution))
        spans.observe(batch, reply_of(batch, execution))
    assert [ids(span)[0] for span in kept.kept] == [1]
    spans.finish()
    assert [ids(span)[0] for span in kept.kept] == [1, 2]


async def test_it_is_finished_by_itself() -> None:
    """Nothing need come after it."""
    kept = Kept()
    spans = BatchSpans(version(), kept, broker=False)
    batch = traced(Context(1, 1))
    spans.observe(batch, reply_of(batch, 1))
    async with asyncio.timeout(5):
        while not kept.kept:
            await asyncio.sleep(0.01)
    assert "messaging.system" not in (kept.kept[0].attributes or {})


async def test_without_a_traced_member_there_is_none() -> None:
    kept = Kept()
    spans = BatchSpans(version(), kept, broker=True)
    batch = traced(None, None)
    reply = reply_of(batch, 1)
    spans.observe(batch, reply, PUBLISH)
    spans.finish()
    assert (kept.kept, reply.timing.span) == ([], b"")


async def test_what_never_ran_has_none() -> None:
    """Its process was lost: the number of an execution is missing."""
    kept = Kept()
    spans = BatchSpans(version(), kept, broker=True)
    batch = traced(Context(1, 1))
    spans.observe(batch, Reply(batch.id, [failure_of(ModelFailed("lost"))], Timing()), PUBLISH)
    spans.finish()
    assert kept.kept == []


async def test_a_failure_and_a_second_try_are_told() -> None:
    kept = Kept()
    spans = BatchSpans(version(), kept, broker=True)
    batch = traced(Context(1, 1))
    spans.observe(batch, reply_of(batch, 1, failure=failure_of(ModelFailed("it raised"))), PUBLISH, attempt=2)
    spans.finish()
    attributes = dict(kept.kept[0].attributes or {})
    assert (attributes["error.type"], attributes["penstock.attempt"]) == ("model_failed", 2)
