"""What a version did so far, in the terms of V2's statistics extension, recorded once per batch.

T:docs/protocol/extension_statistics.md: counts are per request but `inference_count` (rows) and `execution_count`
(executions on the device); durations are sums in nanoseconds. A request refused before it reached a batch counts
as failed with the time it took.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from gateway.batching.batcher import BatchDone


class Duration(msgspec.Struct):
    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


class BatchSize(msgspec.Struct):
    """Executions of one size: how many, and their nanoseconds. A batch that the worker merged with others into one
    execution adds its share, hence the fractions."""

    batch_size: int
    executions: float = 0.0
    compute_input: float = 0.0
    compute_infer: float = 0.0
    compute_output: float = 0.0


class Statistics:
    """The counters of one version; mutable state, all of it listed here. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.last_inference = 0
        """Milliseconds since the epoch, as the extension has it."""
        self.inference_count = 0
        self.execution_count = 0.0
        """Batches that the worker merged into one execution count for their share of it."""
        self.success = Duration()
        self.fail = Duration()
        self.queue = Duration()
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.cancelled = 0
        self.refusals: Counter[str] = Counter()
        """By the error's reason."""
        self.closed: Counter[str] = Counter()
        """Why each batch was closed."""
        self.sizes: dict[int, BatchSize] = {}

    def refused(self, reason: str, ns: int) -> None:
        self.fail.add(1, ns)
        self.refusals[reason] += 1

    def executed(self, batch: BatchDone) -> None:
        """Record one finished batch: its reason always, the rest where any of its requests has an answer.

        Its failed requests are none of this method's business: each was `refused`.
        """
        self.closed[batch.reason] += 1
        if batch.succeeded:
            self.last_inference = int(self._clock() * 1000)
            self._requests(batch)
            self._execution(batch)

    def _requests(self, batch: BatchDone) -> None:
        """Each request took all of its batch's compute; it waited in the gateway, then with its batch at the worker."""
        timing, count, arrived, rows = batch.timing, len(batch.succeeded), 0, 0
        for entry in batch.succeeded:
            arrived += entry.arrived
            rows += entry.rows
        self.inference_count += rows
        self.success.add(count, count * batch.answered - arrived)
        self.queue.add(count, count * (batch.dispatched + timing.queue) - arrived)
        self.compute_input.add(count, count * timing.compute_input)
        self.compute_infer.add(count, count * timing.compute_infer)
        self.compute_output.add(count, count * timing.compute_output)

    def _execution(self, batch: BatchDone) -> None:
        timing = batch.timing
        share = 1 / max(1, timing.executed_batches)
        self.execution_count += share
        rows = timing.executed_rows or batch.rows
        size = self.sizes.get(rows)
        if size is None:
            size = self.sizes[rows] = BatchSize(rows)
        size.executions += share
        size.compute_input += share * timing.compute_input
        size.compute_infer += share * timing.compute_infer
        size.compute_output += share * timing.compute_output
