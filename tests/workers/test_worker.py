"""The worker's loop: coalescing while it is busy, expiry, cancellation, draining."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.typing import EventDict

from repository.records import Signature
from tests.workers.samples import array_of, batch_of, failure_in, rows, version
from workers.execution import Runner
from workers.merge import Arrays
from workers.messages import Batch, Cancel, Reply, Scalar
from workers.worker import Timed, Worker

BOUND_S = 10.0


class Gated:
    """Doubles, but only while its gate is open; says when it has begun."""

    def __init__(self) -> None:
        self.signature = Signature((), ())
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.closed = threading.Event()

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        self.sizes.append(inputs["x"].shape[0])
        self.begun.set()
        assert self.gate.wait(BOUND_S)
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        self.closed.set()


class Harness:
    def __init__(self, max_batch: int = 32) -> None:
        self.now = 1_000
        self.model = Gated()
        runner = Runner(version(max_batch=max_batch), self.model)
        loop = asyncio.get_running_loop()
        self.posts = 0

        def post(function: Callable[..., None], *arguments: object) -> None:
            self.posts += 1
            loop.call_soon_threadsafe(function, *arguments)

        self.worker = Worker(runner, [Timed(1, 0.5)], post, lambda: self.now)
        self.worker.start()

    def submit(self, batch: Batch) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        thread = threading.current_thread()

        def reply(answer: Reply) -> None:
            assert threading.current_thread() is thread
            future.set_result(answer)

        self.worker.submit(batch, reply)
        return future

    async def occupy(self) -> asyncio.Future[Reply]:
        """Have the model busy with a batch of one row until the gate opens."""
        self.model.gate.clear()
        first = self.submit(batch_of(rows(100), number=100))
        await asyncio.to_thread(self.model.begun.wait, BOUND_S)
        return first


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness()
    yield harness
    harness.model.gate.set()
    await harness.worker.close(BOUND_S)


async def test_a_batch_is_answered_on_the_loops_thread(harness: Harness) -> None:
    reply = await harness.submit(batch_of(rows(1), rows(2, 3)))
    assert [array_of(result)[:, 0].tolist() for result in reply.results] == [[2], [4, 6]]
    assert (reply.id, reply.timing.executed_rows, reply.timing.executed_batches) == (1, 3, 1)


async def test_what_gathers_while_the_model_is_busy_runs_as_one(harness: Harness) -> None:
    """Batches of equal keys are merged, each gets its own answer, and one hand-over brings them all."""
    first = await harness.occupy()
    rest = [harness.submit(batch_of(rows(at), rows(-at), number=at)) for at in range(1, 5)]
    harness.model.gate.set()
    replies = await asyncio.gather(first, *rest)
    assert harness.model.sizes == [1, 8]
    assert harness.posts == 2
    for at, reply in enumerate(replies[1:], 1):
        assert [array_of(result)[0, 0] for result in reply.results] == [2 * at, -2 * at]
        assert (reply.timing.executed_rows, reply.timing.executed_batches) == (8, 4)


async def test_merging_stops_at_max_batch_and_at_other_keys(harness: Harness) -> None:
    first = await harness.occupy()
    rest = [
        harness.submit(batch_of(rows(*[1] * 20), number=1)),
        harness.submit(batch_of(rows(*[2] * 20), number=2)),
        harness.submit(batch_of(rows(3), number=3, parameters={"k": 1})),
        harness.submit(batch_of(rows(*[4] * 12), number=4)),
    ]
    harness.model.gate.set()
    await asyncio.gather(first, *rest)
    assert harness.model.sizes == [1, 32, 20, 1]


async def test_expired_members_never_reach_the_model(harness: Harness) -> None:
    """A deadline that passed while the batch was queued: a typed failure; its neighbours are answered."""
    first = await harness.occupy()
    batch = batch_of(rows(1), rows(2), rows(3), deadlines=[0, 1_500, 3_000])
    waiting = harness.submit(batch)
    harness.now = 2_000
    harness.model.gate.set()
    await first
    reply = await waiting
    assert harness.model.sizes == [1, 2]
    assert array_of(reply.results[0])[0, 0] == 2
    assert failure_in(reply.results[1]).reason == "deadline_exceeded"
    assert array_of(reply.results[2])[0, 0] == 6
    assert reply.timing.queue == 1_000


async def test_cancelled_members_never_reach_the_model(harness: Harness) -> None:
    """Each of three callers in turn leaves while queued: the other two are answered with their own rows."""
    for gone in range(3):
        first = await harness.occupy()
        waiting = harness.submit(batch_of(rows(1), rows(2), rows(3)))
        harness.worker.cancel(Cancel(1, [gone]))
        harness.model.gate.set()
        await first
        reply = await waiting
        got = [array_of(r)[0, 0] for at, r in enumerate(reply.results) if at != gone]
        assert got == [2 * value for at, value in enumerate([1, 2, 3]) if at != gone]
        assert failure_in(reply.results[gone])
        harness.model.begun.clear()
    assert harness.model.sizes == [1, 2] * 3


async def test_a_batch_of_which_nobody_is_left_does_not_run(harness: Harness) -> None:
    first = await harness.occupy()
    waiting = harness.submit(batch_of(rows(1), rows(2)))
    harness.worker.cancel(Cancel(1, [0]))
    harness.worker.cancel(Cancel(1, [1]))
    harness.model.gate.set()
    await first
    reply = await waiting
    assert harness.model.sizes == [1]
    assert all(failure_in(result) for result in reply.results)


async def test_cancelling_what_is_unknown_or_out_of_range_is_harmless(harness: Harness) -> None:
    harness.worker.cancel(Cancel(77, [0]))
    first = await harness.occupy()
    harness.worker.cancel(Cancel(100, [5, -1]))
    harness.model.gate.set()
    assert array_of((await first).results[0])[0, 0] == 200


async def test_a_defect_of_ours_is_answered_and_survived(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    """Whatever goes wrong around the model, callers are answered and the thread lives on."""
    with monkeypatch.context() as broken:
        broken.setattr("workers.worker.join", lambda batches: 1 / 0)
        reply = await asyncio.wait_for(harness.submit(batch_of(rows(1), rows(2))), BOUND_S)
    assert [failure_in(result).reason for result in reply.results] == ["internal", "internal"]
    assert logged[-1]["error_id"] == failure_in(reply.results[0]).error_id
    reply = await harness.submit(batch_of(rows(1), number=2))
    assert array_of(reply.results[0])[0, 0] == 2


async def test_without_batching_requests_run_one_by_one() -> None:
    harness = Harness(max_batch=0)
    first = await harness.occupy()
    batches = [batch_of(rows(at), number=at) for at in (1, 2)]
    for batch in batches:
        batch.batched = False
        batch.inputs[0].shape = (1, 4)
    rest = [harness.submit(batch) for batch in batches]
    harness.model.gate.set()
    await asyncio.gather(first, *rest)
    assert harness.model.sizes == [1, 1, 1]
    await harness.worker.close(BOUND_S)


async def test_closing_answers_what_was_accepted_and_frees_the_model() -> None:
    harness = Harness()
    first = await harness.occupy()
    second = harness.submit(batch_of(rows(5)))
    closing = asyncio.create_task(harness.worker.close(BOUND_S))
    await asyncio.sleep(0)
    harness.model.gate.set()
    await closing
    assert first.done()
    assert array_of(second.result().results[0])[0, 0] == 10
    assert await asyncio.to_thread(harness.model.closed.wait, BOUND_S)


async def test_what_does_not_finish_in_time_is_answered_as_lost() -> None:
    """Exactly once: the answer that comes later goes nowhere."""
    harness = Harness()
    first = await harness.occupy()
    await harness.worker.close(0.01)
    assert failure_in(first.result().results[0]).reason == "worker_lost"
    harness.model.gate.set()
    assert await asyncio.to_thread(harness.model.closed.wait, BOUND_S)
    await asyncio.sleep(0)
