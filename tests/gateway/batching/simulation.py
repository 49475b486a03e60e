"""One model version in virtual time: open-loop arrivals, admission, policy, and a worker that runs its batches."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from core.errors import PenstockError
from gateway.admission import Admission
from gateway.batching.entry import BatchKey, ColumnKey, Entry
from gateway.batching.estimate import Estimate
from gateway.batching.policy import Formed, Policy
from gateway.transports.base import Sample
from workers.messages import Timing

MS = 1_000_000
SECOND = 1000 * MS
KEY = BatchKey((ColumnKey("x", "FP32", (4,)),))


class Model(NamedTuple):
    """Takes fixed + row·b ms for b rows, times 1 + a random share up to `noise`; now and then `stall` ms more."""

    fixed_ms: float
    row_ms: float
    max_batch: int = 32
    noise: float = 0.1
    stall_ms: float = 0.0
    stall_every: int = 100

    def mean(self, rows: int) -> float:
        return (self.fixed_ms + self.row_ms * rows) * (1 + self.noise / 2) * MS

    @property
    def knee(self) -> float:
        """Rows a second in full batches."""
        return self.max_batch / self.mean(self.max_batch) * SECOND


class Source(NamedTuple):
    """A tenant that sends `rate` requests of one row a second, at random, each due within `within_ms`."""

    tenant: str
    rate: float
    within_ms: float
    priority: int = 0


class Simulation:
    """`good`, `late`, `refused` count requests by tenant; late ones were accepted and then not answered in time."""

    WINDOW = 2
    HOP = MS // 2

    def __init__(self, model: Model, sources: list[Source], seed: int = 0, bound: int = 2048) -> None:
        self.model = model
        self.random = random.Random(seed)
        sizes = [1 << k for k in range(model.max_batch.bit_length())]
        samples = [Sample(b, model.mean(b) / SECOND) for b in sizes]
        self.policy = Policy(model.max_batch, Estimate(model.max_batch, samples))
        self.admission = Admission(self.policy, bound, 2 * MS)
        self.now = 0
        self.good: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.batches: list[int] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = 0
        self._alarm = 0
        self._worker: deque[Formed] = deque()
        for source in sources:
            self._after(self._gap(source), partial(self._arrive, source))

    def run(self, seconds: float) -> Simulation:
        end = int(seconds * SECOND)
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heappop(self._events)
            event()
        return self

    @property
    def goodput(self) -> float:
        return self.good.total() / (self.now / SECOND)

    def _after(self, delay: float, event: Callable[[], None]) -> None:
        self._numbers += 1
        heappush(self._events, (self.now + int(delay), self._numbers, event))

    def _gap(self, source: Source) -> float:
        return self.random.expovariate(source.rate) * SECOND

    def _arrive(self, source: Source) -> None:
        self._after(self._gap(source), partial(self._arrive, source))
        deadline = self.now + int(source.within_ms * MS)
        entry = Entry(KEY, 1, [b""], self.now, deadline, source.tenant, source.priority)
        try:
            pushed = self.admission.check(entry, self.now)
        except PenstockError:
            self.refused[source.tenant] += 1
            return
        if pushed is not None:
            self.refused[pushed.tenant] += 1
        self.policy.add(entry)
        self._decide()

    def _decide(self) -> None:
        while True:
            batch, expired, wake = self.policy.decide(self.now, self.WINDOW, punctual=True)
            for entry in expired:
                self.late[entry.tenant] += 1
            if batch is None:
                break
            self.batches.append(batch.rows)
            self._after(self.HOP, partial(self._reach, batch))
        if wake and not self.now < self._alarm <= wake:
            self._alarm = wake
            self._after(wake - self.now, self._decide)

    def _reach(self, batch: Formed) -> None:
        self._worker.append(batch)
        if len(self._worker) == 1:
            self._start(self.now)

    def _start(self, reached: int) -> None:
        model, chance = self.model, self.random
        batch = self._worker[0]
        took = (model.fixed_ms + model.row_ms * batch.rows) * (1 + chance.random() * model.noise)
        if model.stall_ms and chance.randrange(model.stall_every) == 0:
            took += model.stall_ms
        timing = Timing(queue=self.now - reached, compute_infer=int(took * MS), executed_rows=batch.rows)
        self._after(took * MS, partial(self._finish, timing))

    def _finish(self, timing: Timing) -> None:
        batch = self._worker.popleft()
        self._after(self.HOP, partial(self._answer, batch, timing))
        if self._worker:
            self._start(self._worker[0].dispatched + self.HOP)

    def _answer(self, batch: Formed, timing: Timing) -> None:
        self.policy.finished(batch, self.now, timing)
        for entry in batch.entries:
            (self.good if self.now <= entry.deadline else self.late)[entry.tenant] += 1
        self._decide()
