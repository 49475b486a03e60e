"""When a worker will be free for the next batch of this gateway: from what it has in flight, and what it has seen.

Batches in flight are taken to run in the order sent, on this gateway's *share* of the workers: what it is seen to get
while it has a backlog, and its window's part of them at least. What others add to the wait beyond that is the *bias*,
by which admission is more careful. Taking all workers for one's own makes most of the accepted late where two gateways
share four workers at 1.2 of the knee (simulated: docs/batching.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from gateway.batching.estimate import Estimate, steady

PER_REPLICA = 2
"""Batches of a window that are for one worker."""
GRAIN = 1_000_000
"""Nanoseconds by which a timer may be late: nothing is held back for less."""
SURPRISES = 64
"""Batches by which the bias is measured,"""
LEARN = 8
"""and after how many anew; a greater surprise counts at once."""
FADE = 0.97
"""Of what was seen of the share, with each batch: a memory of about 33."""


class Flying(Protocol):
    """`begun`: when it came to be among the first in flight, 0: not yet."""

    rows: int
    begun: int


class Outlook:
    """All times are monotonic nanoseconds."""

    __slots__ = ("_drained", "_elapsed", "_estimate", "_learned", "_part", "_since", "_surprises", "_window", "bias",
                 "busy_until", "replicas", "share", "workers")  # fmt: skip

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self.replicas = 1
        """Workers that take what is sent, whoever sends."""
        self.share = self._part = 1.0
        """Workers' worth of work that is done for this gateway, and what its window says of that."""
        self.workers = 1
        """The share as whole workers, each of them slower or faster by what is left over."""
        self._window = 0
        self.busy_until = 0
        """When a worker is expected to be free for the next batch."""
        self.bias = 0
        """How much longer batches have lately waited at the worker than that."""
        self._since = 0
        """When a batch last came back while more waited; 0: nothing has waited since."""
        self._drained = self._elapsed = 0.0
        self._surprises: deque[int] = deque(maxlen=SURPRISES)
        self._learned = 0

    def count(self, window: int, replicas: int) -> None:
        """There are so many workers, and this gateway may have `window` batches in flight."""
        if window == self._window and replicas == self.replicas:
            return
        self._window, self.replicas = window, max(1, replicas)
        self._part = min(self.replicas, max(window, 1) / PER_REPLICA)
        self._take(self.share if self._elapsed else 0.0)

    def _take(self, share: float) -> None:
        self.share = max(self._part, min(self.replicas, share))
        self.workers = max(1, round(self.share))

    def opens(self, flying: int, rows: int, now: int) -> int:
        """From when on one more batch is of use: it reaches a worker just as the first of them can be free, by the
        fastest run seen of batches of `rows`. `flying`: how many are in flight."""
        if flying < self.workers:
            return now
        estimate = self._estimate
        early = estimate.overhead + estimate.typical(rows) - estimate.floor(rows) + GRAIN
        return max(now, self.busy_until - early)

    def foresee(self, aboard: Sequence[Flying], now: int) -> None:
        """`aboard`: all in flight, in the order sent; the first ones are running."""
        workers = self.workers
        if len(aboard) < workers:
            for batch in aboard:
                batch.begun = batch.begun or now
            self.busy_until = now
            return
        stretch = workers / self.share
        free: list[int] = []
        for batch in aboard:
            if len(free) < workers:
                start = batch.begun = batch.begun or now
            else:
                start = heappop(free)
            heappush(free, max(now, start + int(self._estimate.typical(batch.rows) * stretch)))
        self.busy_until = free[0]

    def surprised(self, surprise: int) -> None:
        """A batch was begun with so much later than expected (negative: earlier)."""
        self._surprises.append(surprise)
        self._learned += 1
        if surprise > self.bias or self._learned % LEARN == 0:
            self.bias = max(0, steady(sorted(self._surprises)))

    def got(self, work: float, now: int, more: bool) -> None:
        """A batch has come back, for which so much of a worker's time was taken; `more`: others wait."""
        if self._since:
            self._elapsed = self._elapsed * FADE + (now - self._since)
            self._drained = self._drained * FADE + work
            self._take(self._drained / max(1.0, self._elapsed))
        self._since = now if more else 0

    def __repr__(self) -> str:
        return f"<Outlook: {self.share:.3g} of {self.replicas} workers, bias {self.bias / 1e6:.3g} ms>"
