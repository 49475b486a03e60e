"""A scripted transport, for tests and benchmarks: deterministic, without worker, thread or process.

fake = Fake()                         # answers by itself on the loop's next turn, echoing its inputs
fake = Fake(automatic=False)          # keeps batches in `fake.waiting` until told
fake.complete(); fake.complete(id)    # the oldest, or that one
fake.fail(ModelFailed("…")); fake.lose(); fake.unserve(); fake.window = 0
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from core.errors import PenstockError, WorkerLost
from gateway.transports.base import UNSERVED, Done, Sample
from workers.messages import Batch, Cancel, Column, Failure, Member, Output, Reply, Timing, failure_of

Result = list[Output] | Failure
Compute = Callable[[Batch], list[Result]]
Later = Callable[[float, Callable[[], None]], object]
"""`later(seconds, function)`: have the function called after that time, of the loop or of a simulator."""


def echo(batch: Batch) -> list[Result]:
    """Every member gets its own inputs back, each output named like its input."""
    return [
        [_own(column, at, member, batch.batched) for column in batch.inputs] for at, member in enumerate(batch.members)
    ]


def _own(column: Column, at: int, member: Member, batched: bool) -> Output:
    shape = (member.rows, *column.shape) if batched else column.shape
    return Output(column.name, column.datatype, shape, column.pieces[at])


class Fake:
    """`service`: seconds (or a function of the batch) that an automatic answer takes, counted by `later`."""

    def __init__(
        self,
        window: int = 2,
        samples: Sequence[Sample] = (),
        compute: Compute = echo,
        automatic: bool = True,
        service: float | Callable[[Batch], float] = 0.0,
        later: Later | None = None,
        replicas: int = 1,
    ) -> None:
        self.window = window
        self.replicas, self.gateways = replicas, 1
        self.samples = list(samples)
        self.sent: list[Batch] = []
        self.cancelled: list[Cancel] = []
        self.waiting: dict[int, tuple[Batch, Done]] = {}
        self.closed = False
        self._empty: asyncio.Event | None = None
        self._compute = compute
        self._automatic = automatic
        self._service = service
        self._later: Later = later or (lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call))

    def __repr__(self) -> str:
        return f"<Fake window {self.window}, {len(self.sent)} sent, {len(self.waiting)} waiting>"

    def send(self, batch: Batch, done: Done) -> None:
        self.sent.append(batch)
        self.waiting[batch.id] = (batch, done)
        if self._automatic:
            self._later(self._seconds(batch), lambda: self._finish(batch.id))

    def cancel(self, cancel: Cancel) -> None:
        self.cancelled.append(cancel)

    async def close(self) -> None:
        self.closed = True
        self.window = 0
        if self._automatic and self.waiting:
            self._empty = asyncio.Event()
            await self._empty.wait()
        self.lose()

    def complete(self, batch_id: int | None = None, results: list[Result] | None = None) -> None:
        """Answer a waiting batch (the oldest, if none is named) with `results`, or what `compute` makes of it."""
        batch, done = self._take(batch_id)
        rows = batch.rows
        done(Reply(batch.id, self._compute(batch) if results is None else results, Timing(executed_rows=rows)))

    def fail(self, error: PenstockError, batch_id: int | None = None) -> None:
        """Answer every member of a waiting batch with `error`."""
        batch, done = self._take(batch_id)
        done(Reply(batch.id, [failure_of(error)] * len(batch.members), Timing()))

    def lose(self) -> None:
        """The worker dies: everything that waits comes back as lost."""
        while self.waiting:
            self.fail(WorkerLost("the worker was lost"))

    def unserve(self) -> None:
        """No worker serves the version any more: everything that waits comes back so."""
        while self.waiting:
            batch, done = self._take(None)
            done(Reply(batch.id, [UNSERVED] * len(batch.members), Timing()))

    def _seconds(self, batch: Batch) -> float:
        return self._service(batch) if callable(self._service) else self._service

    def _take(self, batch_id: int | None) -> tuple[Batch, Done]:
        return self.waiting.pop(next(iter(self.waiting)) if batch_id is None else batch_id)

    def _finish(self, batch_id: int) -> None:
        if batch_id in self.waiting:
            self.complete(batch_id)
        if not self.waiting and self._empty is not None:
            self._empty.set()
