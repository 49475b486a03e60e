"""The batcher's promises to its callers, on a real event loop and a scripted transport."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from core.datatypes import Buffer
from core.errors import (
    DeadlineExceeded,
    Draining,
    Hopeless,
    Internal,
    PenstockError,
    QueueFull,
    Unavailable,
    WorkerLost,
)
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

    def __init__(self, window: int = 1, samples: list[Sample] | None = None, replicas: int = 1) -> None:
        self.window = window
        self.replicas, self.gateways = replicas, 1
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


async def test_requests_of_one_iteration_of_the_loop_leave_together_and_without_a_timer() -> None:
    """The first does not leave alone, and none waits beyond the iteration."""
    transport = Scripted(window=2)
    subject = batcher(transport)
    callers = [Caller(number) for number in range(3)]
    for caller in callers:
        subject.submit(caller)
    assert transport.sent == []
    await turn()
    assert [len(batch.members) for batch in transport.sent] == [3]
    assert transport.sent[0].rows == 3
    assert transport.sent[0].batched


async def test_while_the_window_is_full_requests_gather_and_leave_with_the_slot() -> None:
    """Two batches in flight, never three; who came meanwhile shares the next one."""
    transport = Scripted(window=2)
    subject = batcher(transport)
    callers = [Caller(number) for number in range(6)]
    for caller in callers:
        subject.submit(caller)
        await turn()
    assert [len(batch.members) for batch in transport.sent] == [1, 1]
    transport.reply()
    await turn()
    assert [len(batch.members) for batch in transport.sent] == [1, 1, 4]
    assert transport.most_in_flight == 2


async def test_each_member_gets_its_own_result_or_its_own_error() -> None:
    """One row fails: its caller hears why, with the same words; the others have their answers, and statistics both."""
    transport = Scripted()
    done: list[BatchDone] = []
    subject = batcher(transport, done)
    callers = [Caller(1), Caller(2, rows=3), Caller(3)]
    for caller in callers:
        subject.submit(caller)
    await turn()
    transport.reply(failing=frozenset({1}))
    assert callers[0].outcomes == [callers[0].sent]
    assert [repr(outcome) for outcome in callers[1].outcomes] == ["ModelFailed('it raised')"]
    assert callers[2].outcomes == [callers[2].sent]
    assert [(b.rows, b.reason, b.succeeded, [e for e, _ in b.failed]) for b in done] == [
        (5, "slot", [callers[0], callers[2]], [callers[1]])
    ]
    assert done[0].timing == TIMING
    assert callers[0].arrived <= done[0].dispatched <= done[0].answered


async def test_a_callee_that_raises_costs_its_neighbours_nothing() -> None:
    """An exchange that fails in `answer` or `refuse`, or a failing statistic, is logged; all others are answered."""

    class Broken(Caller):
        def answer(self, outputs: list[Output], timing: Timing, waited: int) -> None:
            raise RuntimeError("the socket is gone")

        def refuse(self, error: PenstockError) -> None:
            raise RuntimeError("the socket is gone")

    def broken(_: BatchDone) -> None:
        raise RuntimeError("no statistics")

    transport = Scripted()
    subject = Batcher(version(), transport, Settings(), broken)
    callers = [Broken(0), Caller(1), Broken(2), Caller(3)]
    for caller in callers:
        subject.submit(caller)
    await turn()
    transport.reply(failing=frozenset({2}))
    assert [caller.outcomes for caller in callers] == [[], [callers[1].sent], [], [callers[3].sent]]
    assert subject.pending == 0


@pytest.mark.parametrize("cut", [1, -1])
async def test_a_reply_that_does_not_match_its_batch_is_an_error_of_ours_for_all(cut: int) -> None:
    """Too few or too many results: nobody gets somebody else's, nobody waits for ever; the slot is free again."""
    transport = Scripted()
    subject = batcher(transport)
    callers = [Caller(number) for number in range(3)]
    for caller in callers:
        subject.submit(caller)
    await turn()
    if cut < 0:
        batch, answer = transport.waiting.pop(0)
        answer(Reply(batch.id, [[output(b"x")]] * 4, TIMING))
    else:
        transport.reply(cut=cut)
    for caller in callers:
        (outcome,) = caller.outcomes
        assert isinstance(outcome, Internal)
        assert outcome.error_id
    subject.submit(again := Caller(9))
    await turn()
    transport.reply()
    assert again.outcomes == [again.sent]


async def test_a_reply_is_taken_once() -> None:
    """A second reply to a batch, or one to a batch that never was, changes nothing."""
    transport = Scripted()
    subject = batcher(transport)
    subject.submit(caller := Caller(1))
    await turn()
    batch, answer = transport.waiting[0]
    transport.reply()
    answer(Reply(batch.id, [[output(b"again")]], TIMING))
    answer(Reply(batch.id + 1000, [[output(b"other")]], TIMING))
    assert caller.outcomes == [caller.sent]


async def test_a_transport_that_raises_fails_its_batch_and_not_the_batcher() -> None:
    """The callers get an error of ours, the next batch leaves."""

    class Broken(Scripted):
        def send(self, batch: Batch, done: Done) -> None:
            if not self.sent:
                self.sent.append(batch)
                raise ValueError("a frame too large")
            super().send(batch, done)

    transport = Broken()
    subject = batcher(transport)
    subject.submit(first := Caller(1))
    await until(lambda: bool(first.outcomes))
    assert [type(outcome) for outcome in first.outcomes] == [Internal]
    subject.submit(second := Caller(2))
    await turn()
    transport.reply()
    assert second.outcomes == [second.sent]


async def test_a_lost_batch_is_a_typed_error_for_each_of_its_members() -> None:
    """worker_lost comes back as WorkerLost, and what waits goes on to the next worker."""
    transport = Scripted()
    subject = batcher(transport)
    subject.submit(lost := Caller(1))
    await turn()
    subject.submit(waiting := Caller(2))
    transport.lose()
    await turn()
    transport.reply()
    assert [type(outcome) for outcome in lost.outcomes] == [WorkerLost]
    assert waiting.outcomes == [waiting.sent]


async def test_a_deadline_passes_in_the_queue_and_aboard_alike() -> None:
    """Where the worker never answers, its caller and those behind it hear so in time; late results go nowhere."""
    transport = Scripted()
    subject = batcher(transport)
    subject.submit(aboard := Caller(1, within_ms=200))
    subject.submit(patient := Caller(2))
    await turn()
    subject.submit(queued := Caller(3, within_ms=400))
    await until(lambda: bool(aboard.outcomes) and bool(queued.outcomes))
    assert [type(outcome) for outcome in aboard.outcomes + queued.outcomes] == [DeadlineExceeded] * 2
    assert time.monotonic_ns() >= queued.deadline
    assert transport.cancelled == [Cancel(transport.sent[0].id, [0])]
    transport.reply()
    assert len(aboard.outcomes) == 1
    assert patient.outcomes == [patient.sent]


async def test_a_deadline_passes_aboard_though_nothing_waits() -> None:
    """The timer stands for what is in flight too."""
    transport = Scripted()
    subject = batcher(transport)
    subject.submit(caller := Caller(1, within_ms=200))
    await until(lambda: bool(caller.outcomes))
    assert [type(outcome) for outcome in caller.outcomes] == [DeadlineExceeded]
    assert len(transport.waiting) == 1


async def test_a_shorter_deadline_moves_the_one_timer_forward() -> None:
    """It stands at the earliest deadline, whatever came first."""
    transport = Scripted()
    subject = batcher(transport)
    subject.submit(Caller(1))
    await turn()
    subject.submit(long := Caller(2, within_ms=5_000))
    await turn()
    subject.submit(short := Caller(3, within_ms=30))
    await until(lambda: bool(short.outcomes))
    assert long.outcomes == []
    assert time.monotonic_ns() < long.deadline


@pytest.mark.parametrize(("window", "replicas", "counted"), [(1, 4, 4), (8, 4, 4), (8, 1, 1), (2, 0, 1)])
async def test_the_transport_says_how_many_replicas_there_are(window: int, replicas: int, counted: int) -> None:
    """Not its window: that is this gateway's share of what they take, and more while batches hang."""
    transport = Scripted(window=window, replicas=replicas)
    subject = batcher(transport)
    subject.submit(Caller(1))
    await turn()
    assert subject.policy.replicas == counted
    transport.reply()


async def test_a_transport_whose_window_opens_later_is_asked_again() -> None:
    """A worker that restarts says nothing when it is back: what waits leaves all the same."""
    transport = Scripted(window=0)
    subject = batcher(transport)
    subject.submit(caller := Caller(1))
    await turn()
    assert transport.sent == []
    transport.window = 2
    await until(lambda: bool(transport.sent))
    transport.reply()
    assert caller.outcomes == [caller.sent]


async def test_who_waits_behind_a_closed_window_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds, however far its deadline; what is in flight may still be answered. Not where the window is open but
    full, and not once it opens again."""
    monkeypatch.setattr("gateway.batching.batcher.CLOSED_PATIENCE_NS", 100_000_000)
    transport = Scripted()
    subject = batcher(transport)
    aboard, waiting = Caller(1), Caller(2)
    for caller in (aboard, waiting):
        subject.submit(caller)
        await turn()
    await asyncio.sleep(0.2)
    assert waiting.outcomes == []
    transport.window = 0
    await until(lambda: bool(waiting.outcomes))
    (refusal,) = waiting.outcomes
    assert isinstance(refusal, Unavailable)
    assert refusal.retry_after
    transport.reply()
    assert aboard.outcomes == [aboard.sent]
    assert subject.pending == 0
    subject.submit(late := Caller(4))
    transport.window = 1
    await until(lambda: bool(transport.sent[1:]))
    transport.reply()
    assert late.outcomes == [late.sent]


async def test_refusals_are_raised_at_once() -> None:
    """Expired, hopeless and full: by exceptions, and the entry is not kept."""
    transport = Scripted(samples=[Sample(1, 1.0), Sample(8, 2.0)])
    subject = batcher(transport, queue_bound=2)
    with pytest.raises(DeadlineExceeded):
        subject.submit(Caller(1, within_ms=-1))
    with pytest.raises(Hopeless):
        subject.submit(Caller(1, within_ms=500))
    for number in range(2):
        subject.submit(Caller(number))
    with pytest.raises(QueueFull):
        subject.submit(Caller(2))
    assert subject.pending == 2


async def test_who_is_pushed_out_by_another_tenants_share_is_told_so() -> None:
    """The flood's last request makes room, and its caller hears QueueFull with advice."""
    subject = batcher(Scripted(), queue_bound=2)
    flood = [Caller(number, tenant="flood") for number in range(2)]
    for caller in flood:
        subject.submit(caller)
    subject.submit(Caller(9, tenant="b"))
    assert [type(outcome) for caller in flood for outcome in caller.outcomes] == [QueueFull]
    assert subject.pending == 2


async def test_a_model_that_does_not_batch_gets_requests_one_by_one() -> None:
    """`batched` is false, and each batch has one member and the caller's own parameters."""
    transport = Scripted()
    subject = batcher(transport, max_batch=0)
    key = KEY._replace(parameters=(("k", 5),))
    for number in range(2):
        subject.submit(Caller(number, key=key))
    await turn()
    transport.reply()
    await turn()
    assert [(len(b.members), b.batched, b.parameters) for b in transport.sent] == [(1, False, {"k": 5})] * 2


async def test_a_drain_waits_for_all_that_was_accepted_and_accepts_no_more() -> None:
    """It ends when the last is answered, whether by an answer or because its caller left."""
    transport = Scripted()
    subject = batcher(transport)
    callers = [Caller(number) for number in range(9)]
    for caller in callers:
        subject.submit(caller)
    await turn()
    drained = asyncio.ensure_future(subject.drain(5))
    await turn()
    for _ in range(2):
        with pytest.raises(Draining):
            subject.submit(Caller(99))
    transport.reply()
    await turn()
    assert not drained.done()
    subject.cancel(callers[8])
    async with asyncio.timeout(1):
        assert await drained == 0
    assert [caller.outcomes for caller in callers[:8]] == [[caller.sent] for caller in callers[:8]]


async def test_a_drain_that_times_out_says_how_many_are_left_and_close_refuses_them() -> None:
    """Nobody is left without an answer; what the worker still sends goes nowhere."""
    transport = Scripted()
    subject = batcher(transport)
    callers = [Caller(number) for number in range(9)]
    for caller in callers:
        subject.submit(caller)
    await turn()
    assert await subject.drain(0.01) == 9
    subject.close(Draining("stopped"))
    assert [type(outcome) for caller in callers for outcome in caller.outcomes] == [Draining] * 9
    transport.reply()
    await turn()
    assert all(len(caller.outcomes) == 1 for caller in callers)
    assert subject.pending == 0
    assert await subject.drain(1) == 0
    with pytest.raises(Draining, match="stopped"):
        subject.submit(Caller(1))


async def interleave(seed: int) -> None:
    """Submits, cancels, failures, losses, wrong replies and answers at random; then everything is brought to an end."""
    chance = random.Random(seed)
    transport = Scripted(window=chance.randint(1, 3))
    done: list[BatchDone] = []
    subject = batcher(transport, done, max_batch=chance.choice([1, 2, 5, 8]), queue_bound=chance.choice([3, 20, 100]))
    callers: list[Caller] = []
    gone: set[Caller] = set()
    refused: set[Caller] = set()

    def submit() -> None:
        rows = chance.randint(1, subject.policy.queue.capacity)
        key, tenant = chance.choice([KEY, KEY, OTHER]), chance.choice("abc")
        caller = Caller(
            chance.randrange(256), key=key, rows=rows, within_ms=chance.choice([1, 60_000, 60_000]), tenant=tenant
        )
        callers.append(caller)
        if chance.random() < 0.1:
            caller.on_outcome = lambda: submit() if len(callers) < 300 else None
        try:
            subject.submit(caller)
        except PenstockError:
            refused.add(caller)

    def cancel() -> None:
        caller = chance.choice(callers)
        if not caller.outcomes and caller not in refused:
            gone.add(caller)
            subject.cancel(caller)

    def reply() -> None:
        if not transport.waiting:
            return
        at = chance.randrange(len(transport.waiting))
        members = len(transport.waiting[at][0].members)
        failing = frozenset(i for i in range(members) if chance.random() < 0.1)
        if chance.random() < 0.1:
            transport.lose()
        else:
            transport.reply(at=at, failing=failing, cut=int(chance.random() < 0.05))

    submit()
    for _ in range(60):
        chance.choice([submit, submit, submit, cancel, reply, reply])()
        if chance.random() < 0.5:
            await turn()
    while subject.pending or transport.waiting:
        reply()
        await turn()
    check(callers, gone, refused, transport, done)


def check(
    callers: list[Caller], gone: set[Caller], refused: set[Caller], transport: Scripted, done: list[BatchDone]
) -> None:
    for caller in callers:
        assert len(caller.outcomes) == (0 if caller in gone or caller in refused else 1)
        for outcome in caller.outcomes:
            assert isinstance(outcome, PenstockError) or outcome == caller.sent, "rows were mixed"
    assert transport.most_in_flight <= transport.window
    assert len(done) == len(transport.sent)
    answered = [caller for caller in callers if caller.outcomes and isinstance(caller.outcomes[0], bytes)]
    assert {id(entry) for batch in done for entry in batch.succeeded} == {id(caller) for caller in answered}


async def test_random_interleavings_never_mix_rows_and_give_each_caller_exactly_one_outcome() -> None:
    """Hundreds of histories, callers that submit again from inside their answers among them."""
    for seed in range(400):
        await interleave(seed)
