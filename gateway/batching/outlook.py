"""When a worker will be free for the next batch of this gateway: from what it has in flight, and what it has seen.

Batches in flight are taken to run in the order sent, on this gateway's *share* of the workers: what it is seen to get
while it has a backlog, and an equal part of them at least. What others add to the wait beyond that is the *bias*,
by which admission is more careful. Taking all workers for one's own makes most of the accepted late where two gateways
share four workers at 1.2 of the knee (simulated: docs/batching.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol

from gateway.batching.estimate import Estimate, percentile

PER_REPLICA = 2
"""Batches in flight for each worker, over all gateways: one that runs, and one that waits for it or is on its way."""
GRAIN = 1_000_000
"""Nanoseconds by which a timer may be late: nothing is held back for less."""
CLOSE = 0.95
"""Of its distance, what a full batch keeps from the last one, so that a gap can be made up for. None at all, and they
meet the same busy replica in each round; a tenth is lost so with eight replicas at 0.7 of the knee."""
SURPRISES = 64
"""Batches by which the bias is measured,"""
LEARN = 8
"""and after how many anew; a greater surprise counts at once."""
FADE = 0.97
"""Of what was seen of the share, with each batch: a memory of about 33."""


class Flying(Protocol):
    """`begun`: when it came to be among the first in flight, 0: not yet."""

    rows: int
    dispatched: int
    begun: int


class Outlook:
    """All times are monotonic nanoseconds."""

    __slots__ = ("_drained", "_elapsed", "_estimate", "_gateways", "_learned", "_part", "_since", "_surprises", "bias",
                 "free", "replicas", "share", "workers")  # fmt: skip

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate
        self.replicas = 1
        """Workers that take what is sent, whoever sends."""
        self.share = self._part = 1.0
        """Workers' worth of work that is done for this gateway, and an equal part of them."""
        self.workers = 1
        """The share as whole workers, each of them slower or faster by what is left over."""
        self._gateways = 1
        self.free = [0]
        """When each of these workers is expected to be free for another batch, in that order."""
        self.bias = 0
        """How much longer than that 1 of 20 batches has lately waited at the worker."""
        self._since = 0
        """When a batch last came back while more waited; 0: nothing has waited since."""
        self._drained = self._elapsed = 0.0
        self._surprises: deque[int] = deque(maxlen=SURPRISES)
        self._learned = 0

    def count(self, replicas: int, gateways: int) -> None:
        """There are so many workers, and so many that send to them, this gateway among them."""
        if replicas == self.replicas and gateways == self._gateways:
            return
        self.replicas, self._gateways = max(1, replicas), max(1, gateways)
        self._part = self.replicas / self._gateways
        self._take(self.share if self._elapsed else 0.0)

    def _take(self, share: float) -> None:
        self.share = max(self._part, min(self.replicas, share))
        self.workers = max(1, round(self.share))

    def opens(self, aboard: Sequence[Flying], full: bool, now: int) -> int:
        """From when on one more batch, a full one or not, is of use. `aboard`: all in flight, in the order sent.

        It is to reach a worker just as the first of them can be free, sooner than expected by as much as batches are.
        """
        opens = now
        if len(aboard) >= self.workers:
            opens = max(now, self.free[0] - self._estimate.overhead - self._estimate.haste - GRAIN)
        if aboard and self.replicas > 1:
            opens = max(opens, aboard[-1].dispatched + self.distance(aboard[-1].rows, full))
        return opens

    def distance(self, rows: int, full: bool) -> int:
        """How long `rows` take this gateway's share of several workers: so much later the next batch is to leave."""
        took = self._estimate.typical(rows) - self._estimate.haste
        return int((CLOSE if full else 1) * took / self.share) if took > GRAIN else 0

    def foresee(self, aboard: Sequence[Flying], now: int) -> None:
        """`aboard`: all in flight, in the order sent; the first ones are running."""
        workers = self.workers
        stretch = workers / self.share
        free: list[int] = []
        for batch in aboard:
            if len(free) < workers:
                start = batch.begun = batch.begun or now
            else:
                start = heappop(free)
            heappush(free, max(now, start + int(self._estimate.typical(batch.rows) * stretch)))
        free.extend([now] * (workers - len(free)))
        self.free = sorted(free)

    def begins(self, batches: int, now: int) -> int:
        """When a worker is free for a batch with so many full ones before it."""
        rounds, at = divmod(batches, len(self.free))
        first = self.free[at]
        return (first if first > now else now) + int(rounds * self._estimate.full * len(self.free) / self.share)

    def surprised(self, surprise: int) -> None:
        """A batch was begun with so much later than expected (negative: earlier)."""
        self._surprises.append(surprise)
        self._learned += 1
        if surprise > self.bias or self._learned % LEARN == 0:
            self.bias = max(0, percentile(sorted(self._surprises), 95))

    def got(self, work: float, now: int, more: bool) -> None:
        """A batch has come back, for which so much of a worker's time was taken; `more`: others wait."""
        if self._since:
            self._elapsed = self._elapsed * FADE + (now - self._since)
            self._drained = self._drained * FADE + work
            self._take(self._drained / max(1.0, self._elapsed))
        self._since = now if more else 0

    def __repr__(self) -> str:
        return f"<Outlook: {self.share:.3g} of {self.replicas} workers, bias {self.bias / 1e6:.3g} ms>"
