"""The batcher's promises to its callers, on a real event loop and a scripted transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from core.datatypes import Buffer
from core.errors import PenstockError
from core.settings import Settings
from gateway.batching.batcher import BatchDone, Batcher
from gateway.batching.entry import BatchKey, ColumnKey, Entry
from gateway.transports.base import Done, Sample
from repository.records import Signature, Version
from workers.messages import Batch, Cancel, Failure, Output, Reply, Timing

MS = 1_000_000
KEY = BatchKey((ColumnKey("x", "UINT8", (1,)),))
OTHER = BatchKey((ColumnKey("x", "UINT8", (2,)),))
TIMING = Timing(compute_infer=MS)


class Caller(Entry):
    """Sends a number in its one row, and keeps every outcome it is given."""

    def __init__(
        self, number: int, *, key: BatchKey = KEY, rows: int = 1, within_ms: float = 60_000, tenant: str = ""
    ) -> None:
        now = time.monotonic_ns()
        deadline = now + int(within_ms * MS)
        super().__init__(key, rows, [bytes([number % 256]) * rows * key.columns[0].shape[0]], now, deadline, tenant)
        self.number = number
        self.outcomes: list[bytes | PenstockError] = []
        self.on_outcome: Callable[[], None] = lambda: None

    def answer(self, outputs: list[Output], timing: Timing, waited: int) -> None:
        assert waited >= 0
        self.outcomes.append(bytes(outputs[0].data))
        self.on_outcome()

    def refuse(self, error: PenstockError) -> None:
        self.outcomes.append(error)
        self.on_outcome()

    @property
    def sent(self) -> bytes:
        return bytes([self.number % 256]) * self.rows * self.key.columns[0].shape[0]


class Scripted:
    """A transport that keeps what it is sent until the test answers."""

    def __init__(self, window: int = 1, samples: list[Sample] | None = None) -> None:
        self.window = window
        self.samples = samples or []
        self.waiting: list[tuple[Batch, Done]] = []
        self.sent: list[Batch] = []
        self.cancelled: list[Cancel] = []
        self.most_in_flight = 0

    def send(self, batch: Batch, done: Done) -> None:
        self.waiting.append((batch, done))
        self.sent.append(batch)
        self.most_in_flight = max(self.most_in_flight, len(self.waiting))

    def cancel(self, cancel: Cancel) -> None:
        self.cancelled.append(cancel)

    async def close(self) -> None:
        return None

    def reply(self, *, at: int = 0, failing: frozenset[int] = frozenset(), cut: int = 0) -> None:
        """Answer the batch `at`: each member gets its own bytes back, those in `failing` an error."""
        batch, done = self.waiting.pop(at)
        results: list[list[Output] | Failure] = [
            Failure("model_failed", "it raised") if i in failing else [output(piece)]
            for i, piece in enumerate(batch.inputs[0].pieces)
        ]
        done(Reply(batch.id, results[: len(results) - cut], TIMING))

    def lose(self) -> None:
        batch, done = self.waiting.pop(0)
        done(Reply(batch.id, [Failure("worker_lost", "gone")] * len(batch.members), Timing()))


def output(piece: Buffer) -> Output:
    return Output("y", "UINT8", (len(piece),), piece)


def version(max_batch: int = 8, queue_bound: int = 100) -> Version:
    return Version(
        model="m", version=1, owner="o", format="onnx", digest="", size=0, signature=Signature((), ()),
        max_batch=max_batch, default_deadline_ms=1000, queue_bound=queue_bound, created=0.0,
    )  # fmt: skip


def batcher(transport: Scripted, done: list[BatchDone] | None = None, **limits: int) -> Batcher:
    seen: list[BatchDone] = [] if done is None else done
    return Batcher(version(**limits), transport, Settings(), seen.append)


async def turn() -> None:
    """Let the loop run what is scheduled now."""
    await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("leaver", [0, 1, 2])
@pytest.mark.parametrize("aboard", [False, True])
async def test_a_cancelled_caller_leaves_and_its_neighbours_get_their_own_answers(leaver: int, aboard: bool) -> None:
    """Whoever of three leaves, queued or aboard: the other two get their own rows, the leaver nothing."""
    transport = Scripted()
    subject = batcher(transport)
    callers = [Caller(number) for number in (1, 2, 3)]
    for caller in callers:
        subject.submit(caller)
    if aboard:
        await turn()
    subject.cancel(callers[leaver])
    await turn()
    transport.reply()
    assert [caller.outcomes for caller in callers] == [
        [] if i == leaver else [caller.sent] for i, caller in enumerate(callers)
    ]
    assert len(transport.sent[0].members) == (3 if aboard else 2)
    assert transport.cancelled == ([Cancel(transport.sent[0].id, [leaver])] if aboard else [])
    assert subject.pending == 0
