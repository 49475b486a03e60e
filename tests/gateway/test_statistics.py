"""What is counted of a version, batch by batch."""

from __future__ import annotations

import pytest

from core.errors import ModelFailed, PenstockError
from gateway.batching.batcher import BatchDone
from gateway.batching.entry import BatchKey, Entry
from gateway.batching.policy import FULL, SLOT, Formed
from gateway.metadata import model_statistics
from gateway.statistics import Duration, Statistics
from tests.gateway.test_metadata import route, version
from workers.messages import Timing

KEY = BatchKey(())


def entry(rows: int, arrived: int) -> Entry:
    return Entry(KEY, rows, [], arrived, 0)


def done(
    succeeded: list[Entry],
    timing: Timing,
    reason: str = FULL,
    failed: list[tuple[Entry, PenstockError]] | None = None,
) -> BatchDone:
    """A batch dispatched at 1,000 ns and answered at 5,000 ns."""
    formed = Formed(KEY, dispatched=1_000, room=32)
    formed.rows = sum(one.rows for one in succeeded)
    formed.reason = reason
    batch = BatchDone(formed, timing, answered=5_000)
    batch.succeeded = succeeded
    batch.failed = failed or []
    return batch


def test_a_batch_counts_its_requests_its_rows_and_one_execution() -> None:
    counted = Statistics(clock=lambda: 12.5)
    counted.executed(done([entry(2, 400), entry(3, 900)], Timing(50, 10, 2_000, 20, executed_rows=5)))
    assert counted.inference_count == 5
    assert counted.execution_count == 1
    assert counted.last_inference == 12_500
    assert counted.success == Duration(2, (5_000 - 400) + (5_000 - 900))
    assert counted.queue == Duration(2, (600 + 50) + (100 + 50))
    assert counted.compute_infer == Duration(2, 4_000)
    assert counted.closed == {FULL: 1}


def test_batches_that_the_worker_merged_are_one_execution_of_its_size() -> None:
    counted = Statistics()
    for rows in (3, 5):
        counted.executed(done([entry(rows, 0)], Timing(compute_infer=1_000, executed_rows=8, executed_batches=2)))
    assert counted.execution_count == pytest.approx(1)
    target = route(version())
    target.recorder.statistics = counted
    told = model_statistics(target)
    assert told["execution_count"] == 1
    assert told["inference_count"] == 8
    assert [(row["batch_size"], row["compute_infer"]) for row in told["batch_stats"]] == [(8, {"count": 1, "ns": 1000})]


def test_a_batch_that_failed_whole_counts_only_why_it_was_closed() -> None:
    """Its callers were refused one by one; counting them again here would count them twice."""
    counted = Statistics()
    failed: list[tuple[Entry, PenstockError]] = [(entry(1, 0), ModelFailed("it raised"))]
    counted.refused("model_failed", 70)
    counted.executed(done([], Timing(), SLOT, failed))
    assert (counted.inference_count, counted.execution_count, counted.last_inference) == (0, 0, 0)
    assert counted.fail == Duration(1, 70)
    assert counted.closed == {SLOT: 1}


def test_statistics_tell_why_batches_were_closed_and_requests_refused() -> None:
    target = route(version())
    target.statistics.executed(done([entry(1, 0)], Timing(), SLOT))
    target.statistics.refused("queue_full", 5)
    target.statistics.cancelled += 1
    told = model_statistics(target)
    assert told["batch_close"] == {SLOT: 1}
    assert told["refusals"] == {"queue_full": 1}
    assert told["cancelled"] == 1
    assert told["inference_stats"]["fail"] == {"count": 1, "ns": 5}
