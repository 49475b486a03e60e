"""What a version did so far, in the terms of V2's statistics extension, recorded once per batch.

T:docs/protocol/extension_statistics.md: counts are per request but `inference_count` (rows) and `execution_count`
(executions on the device); durations are sums in nanoseconds. A request refused before it reached a batch counts
as failed with the time it took.
"""

from __future__ import annotations

import time
from collections import Counter

import msgspec


class Duration(msgspec.Struct):
    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns


class BatchSize(msgspec.Struct):
    """Executions of one size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class Statistics:
    """The counters of one version; mutable state, all of it listed here."""

    def __init__(self) -> None:
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

    def executed(self, batch: object) -> None:
        """Record one finished batch (`BatchDone`)."""
        raise NotImplementedError
