"""Batching rules of others, each from its source, to stand in `central.Central`.

Where a rule has settings, `contenders` gives the ones that its operator could choose from, and the comparison takes the
best of them in hindsight. Where a source has an evident slip that costs it, the slip is left out and said so.
`Terms` are what an operator who knows the model and the callers' deadline would write into a configuration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from benchmarks.simulation.arrivals import Request
from benchmarks.simulation.central import Rule, Take
from benchmarks.simulation.clock import MS, SECOND
from benchmarks.simulation.device import Device

FOREVER = 1 << 62


class Terms(NamedTuple):
    """`target_s`: the callers' deadline, from the moment they ask; `hop_s`: the way there, and as long back."""

    device: Device
    target_s: float
    hop_s: float = 0.0

    @property
    def target(self) -> int:
        """Nanoseconds from a request's arrival at the rule to the end of its execution."""
        return int((self.target_s - 2 * self.hop_s) * SECOND)

    def run(self, rows: int) -> int:
        return int(self.device.seconds(rows) * SECOND)

    def last_start(self, request: Request, rows: int = 1) -> int:
        """When a batch of `rows` has to start so that the request is in time."""
        return request.due - int(self.hop_s * SECOND) - self.run(rows) if request.due else FOREVER


class Fifo:
    """First come, first served: what most rules build on. The time of arrival at the rule stands beside each."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Request]] = deque()
        self.rows = 0

    def add(self, request: Request, now: int) -> None:
        self.waiting.append((now, request))
        self.rows += request.rows

    def ran(self, batch: list[Request], started: int, now: int) -> None:
        """Nothing is learned."""

    def first(self, most: int) -> list[Request]:
        """Take the oldest, up to `most` rows; never none."""
        batch: list[Request] = []
        rows = 0
        while self.waiting and (not batch or rows + self.waiting[0][1].rows <= most):
            request = self.waiting.popleft()[1]
            batch.append(request)
            rows += request.rows
        self.rows -= rows
        return batch

    def older_than(self, limit: int, now: int) -> list[Request]:
        """Take out those that have waited `limit` or longer."""
        over = []
        while self.waiting and now - self.waiting[0][0] >= limit:
            over.append(self.waiting.popleft()[1])
        self.rows -= sum(request.rows for request in over)
        return over


class Alone(Fifo):
    """No batching: a request an execution, in the order of arrival; those past their deadline are dropped."""

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self._limit = terms.target

    def take(self, idle: int, now: int) -> Take:
        shed = self.older_than(self._limit, now)
        return Take([[self.waiting.popleft()[1]] for _ in range(min(idle, len(self.waiting)))], shed)


class Fixed(Fifo):
    """A fixed (B, T): an idle replica takes B rows, or what there is once the oldest has waited T.

    With a queue time-out, which few servers have and fewer operators set: who has waited so long that a batch of B
    would come too late is dropped before it runs. (Without it every FIFO collapses above the knee.)
    """

    def __init__(self, terms: Terms, rows: int, wait_s: float) -> None:
        super().__init__()
        self._most, self._wait = rows, int(wait_s * SECOND)
        self._limit = max(1, terms.target - terms.run(rows))

    def take(self, idle: int, now: int) -> Take:
        shed = self.older_than(self._limit, now)
        if not idle or not self.waiting:
            return Take([], shed)
        ready = self.waiting[0][0] + self._wait
        if self.rows >= self._most or now >= ready:
            return Take([self.first(self._most)], shed)
        return Take([], shed, ready)


class MLServer(Fifo):
    """MLServer 1.7, `mlserver/batching/adaptive.py`: a batch closes at `max_batch_size` requests or `max_batch_time`
    after its first one, whether the model is idle or busy, and goes to whichever worker is free next. No deadline is
    known. (Left out: its time-out is shortened by all of the elapsed time at each member, not by what is new of it.)
    """

    def __init__(self, terms: Terms, wait_s: float) -> None:
        super().__init__()
        self._most, self._wait = terms.device.max_batch, int(wait_s * SECOND)

    def take(self, idle: int, now: int) -> Take:
        if not self.waiting:
            return Take([], [])
        closes = self.waiting[0][0] + self._wait
        if self.rows >= self._most or now >= closes:
            return Take([self.first(self._most)], [])
        return Take([], [], closes)


class Triton(Fifo):
    """Triton's dynamic batcher, `core/src/dynamic_batch_scheduler.cc`, GetDynamicBatch: an idle instance takes the
    largest preferred size that waits; else what there is, once the oldest has waited `max_queue_delay` (default 0).
    Default: one preferred size, the maximum. With the queue policy that is off by default: REJECT after
    `default_timeout_microseconds`, here as long as a full batch still makes it.
    """

    def __init__(self, terms: Terms, delay_s: float, preferred: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._most, self._delay = terms.device.max_batch, int(delay_s * SECOND)
        self._preferred = sorted(preferred or (self._most,), reverse=True)
        self._limit = max(1, terms.target - terms.run(self._most))

    def take(self, idle: int, now: int) -> Take:
        shed = self.older_than(self._limit, now)
        if not idle or not self.waiting:
            return Take([], shed)
        ready = self.waiting[0][0] + self._delay
        if now >= ready and self._delay:
            return Take([self.first(self._most)], shed)
        size = next((size for size in self._preferred if size <= self.rows), 0)
        if size or now >= ready:
            return Take([self.first(size or self._most)], shed)
        return Take([], shed, ready)


class BentoML:
    """BentoML 1.x, `_internal/marshal/dispatcher.py`, CorkDispatcher: latency is taken for a·n + b, by least squares
    over 50 executions, refreshed every 5 s. The oldest is cancelled while its age + a·(all that wait) + b reaches
    `max_latency`. A free slot takes at once, unless n·(age of the newest + 1 ms + a) ≤ 0.95 of the mean time that
    the last members of recent batches waited: then it looks again after a millisecond. Batches are popped from the
    newest end, as the source does. (Left out: its batches stay one row below `max_batch_size`; its first requests
    serve as training: here it starts from the true a and b.)
    """

    TICK = MS
    KEPT = 50
    REFRESH = 5 * SECOND

    def __init__(self, terms: Terms) -> None:
        device = terms.device
        self._most, self._target = device.max_batch, terms.target
        self._b = device.fixed_s * (1 + device.jitter / 2) * SECOND
        self._a = device.row_s * (1 + device.jitter / 2) * SECOND
        self._wait = 0.01 * SECOND
        self._waiting: deque[tuple[int, Request]] = deque()
        self._rows = 0
        self._seen: deque[tuple[int, int, int]] = deque(maxlen=self.KEPT)
        self._reached: dict[int, int] = {}
        self._refreshed = 0

    def add(self, request: Request, now: int) -> None:
        self._waiting.append((now, request))
        self._rows += request.rows

    def take(self, idle: int, now: int) -> Take:
        shed = self._cancelled(idle, now)
        waiting = self._waiting
        if not waiting:
            return Take([], shed)
        if not idle:
            return Take([], shed, now + self.TICK)
        n = len(waiting)
        if n < self._most and n * (now - waiting[-1][0] + self.TICK + self._a) <= 0.95 * self._wait:
            return Take([], shed, now + self.TICK)
        batch: list[Request] = []
        rows = newest = 0
        while waiting and (not batch or rows + waiting[-1][1].rows <= self._most):
            newest, request = waiting.pop()
            batch.append(request)
            rows += request.rows
        self._rows -= rows
        self._reached[id(batch)] = now - newest
        return Take([batch], shed)

    def _cancelled(self, idle: int, now: int) -> list[Request]:
        shed: list[Request] = []
        waiting = self._waiting
        while waiting:
            n, age = len(waiting), now - waiting[0][0]
            hopeless = age + self._a * self._rows + self._b >= self._target if n > 1 else not idle
            if not hopeless or (n == 1 and age < self._target):
                break
            shed.append(waiting.popleft()[1])
            self._rows -= shed[-1].rows
        return shed

    def ran(self, batch: list[Request], started: int, now: int) -> None:
        waited = self._reached.pop(id(batch))
        self._seen.append((sum(request.rows for request in batch), now - started, waited))
        if now - self._refreshed >= self.REFRESH:
            self._refreshed = now
            self._refresh()

    def _refresh(self) -> None:
        seen = self._seen
        mean_n = sum(n for n, _, _ in seen) / len(seen)
        mean_t = sum(t for _, t, _ in seen) / len(seen)
        spread = sum((n - mean_n) ** 2 for n, _, _ in seen)
        if spread:
            self._a = max(1000.0, sum((n - mean_n) * (t - mean_t) for n, t, _ in seen) / spread)
            self._b = max(0.0, mean_t - self._a * mean_n)
        self._wait = sum(waited for _, _, waited in seen) / len(seen)


class ByDeadline:
    """A heap of those that wait, the earliest deadline first."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.heap: list[tuple[int, int, int, Request]] = []
        """(deadline, number, time of arrival here, request)"""
        self._numbers = 0

    def add(self, request: Request, now: int) -> None:
        self._numbers += 1
        heappush(self.heap, (request.due or FOREVER, self._numbers, now, request))

    def pop(self) -> Request:
        return heappop(self.heap)[3]

    def ran(self, batch: list[Request], started: int, now: int) -> None:
        """Nothing is learned."""


class Clipper(ByDeadline):
    """Clipper (Crankshaw et al., NSDI 2017, § 4.3; queue: `libclipper/include/clipper/task_executor.hpp`): earliest
    deadline first, those past it dropped; batches up to a size that grows by a step while executions stay below the
    objective and shrinks by a tenth when one does not (AIMD); optionally a delay for the batch to fill up. Objective:
    a share of the target, since the paper's is on the execution alone.
    """

    STEP = 2

    def __init__(self, terms: Terms, share: float, delay_s: float) -> None:
        super().__init__(terms)
        self._objective, self._delay = share * terms.target, int(delay_s * SECOND)
        self._size = 1.0

    def take(self, idle: int, now: int) -> Take:
        heap, shed = self.heap, []
        while heap and heap[0][0] <= now:
            shed.append(self.pop())
        if not idle or not heap:
            return Take([], shed)
        most = min(self.terms.device.max_batch, max(1, int(self._size)))
        if self._delay and len(heap) < most:
            ready = min(arrived for _, _, arrived, _ in heap) + self._delay
            if now < ready:
                return Take([], shed, ready)
        batch = [self.pop()]
        rows = batch[0].rows
        while heap and rows + heap[0][3].rows <= most:
            batch.append(self.pop())
            rows += batch[-1].rows
        return Take([batch], shed)

    def ran(self, batch: list[Request], started: int, now: int) -> None:
        if now - started > self._objective:
            self._size = max(1.0, 0.9 * self._size)
        elif sum(request.rows for request in batch) >= int(self._size):
            self._size = min(float(self.terms.device.max_batch), self._size + self.STEP)


class Edf(ByDeadline):
    """Earliest deadline first with the true service times: an idle replica takes at once, after dropping whom even a
    batch of its own would make late, the earliest ones, as long as the first of them is still in time.

    `early`: drops already whom the batch that could now be made would make late. Without it the tightest deadline
    shrinks each batch, and an overload feeds on itself: EDF's well-known collapse. With it it is Nexus' early drop
    (Shen et al., SOSP 2019).
    """

    def __init__(self, terms: Terms, early: bool) -> None:
        super().__init__(terms)
        self._early = early

    def take(self, idle: int, now: int) -> Take:
        heap, terms, shed = self.heap, self.terms, []
        most = terms.device.max_batch
        while heap and self._hopeless(heap[0][3], min(most, len(heap)), now):
            shed.append(self.pop())
        if not idle or not heap:
            return Take([], shed)
        batch = [self.pop()]
        rows = batch[0].rows
        while heap and rows + heap[0][3].rows <= most and terms.last_start(batch[0], rows + heap[0][3].rows) >= now:
            batch.append(self.pop())
            rows += batch[-1].rows
        return Take([batch], shed)

    def _hopeless(self, request: Request, waiting: int, now: int) -> bool:
        rows = max(request.rows, waiting) if self._early else request.rows
        return self.terms.last_start(request, rows) < now


Maker = Callable[[], Rule]


def grid(terms: Terms) -> Iterator[tuple[str, Maker]]:
    """Fixed settings: B a half, three quarters and all of the maximum; T from 0 to a full batch's time."""
    device = terms.device
    for rows in sorted({max(1, device.max_batch * part // 4) for part in (2, 3, 4)}):
        for share in (0.0, 0.25, 1.0):
            wait_s = share * device.full_s
            yield f"B {rows}, T {wait_s * 1e3:.3g} ms", partial(Fixed, terms, rows, wait_s)


def contenders(terms: Terms) -> dict[str, list[Maker]]:
    """Each rule by name, with the settings to choose the best of."""
    full, most = terms.device.full_s, terms.device.max_batch
    waits = (0.0, 0.25 * full, full)
    shares = (0.25, 0.5)
    return {
        "no batching": [partial(Alone, terms)],
        "best fixed (B, T)": [maker for _, maker in grid(terms)],
        "MLServer": [partial(MLServer, terms, wait) for wait in (0.05 * full, 0.25 * full, full)],
        "BentoML": [partial(BentoML, terms)],
        "Triton": [
            *(partial(Triton, terms, wait) for wait in waits),
            partial(Triton, terms, 0.25 * full, (most // 2, most)),
        ],
        "Clipper": [partial(Clipper, terms, share, wait) for share in shares for wait in (0.0, 0.1 * full)],
        "EDF": [partial(Edf, terms, early) for early in (False, True)],
    }
