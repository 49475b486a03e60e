"""A replica at the broker: answers, coalescing, deadlines, cancellations, prefetch, beats, draining, bad messages."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from structlog.typing import EventDict

from core import beats
from core.beats import DRAINING, FAILED, READY, STARTING
from core.topology import BEATS, EVENTS, GATEWAY, cancel_key, infer_queue, new_instance, suspect_queue
from repository.records import Signature
from tests.unreadable import UNREADABLE, Properties
from tests.workers.asking import BOUND_S, Answer, Asking, Replica, gateway_at, until
from tests.workers.samples import array_of, batch_of, failure_in, rows, version
from workers.consumer import Consumer
from workers.messages import Batch, Column, Reply, Timing, encode
from workers.prefetch import Prefetch

MINUTE = 60 * 10**9


def value_of(result: Any) -> float:
    return float(array_of(result)[0, 0])


async def test_each_member_gets_its_own_rows(amqp_url: str) -> None:
    """In one reply under the gateway's own id, the last of its batch."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        answer = await asking.ask(batch_of(rows(1), rows(2, 3)), number=77)
        results = await answer.done()
        assert [array_of(result)[:, 0].tolist() for result in results] == [[2], [4, 6]]
        assert answer.headers == [{"sequence": 0, "final": True}]
        assert answer.timing.executed_rows == 3


async def test_batches_of_several_gateways_run_together_though_their_ids_are_equal(amqp_url: str) -> None:
    """What gathers while the model is busy is one execution, whoever sent it."""
    async with (
        gateway_at(amqp_url) as one,
        gateway_at(amqp_url) as other,
        gateway_at(amqp_url) as third,
        Replica(amqp_url) as replica,
    ):
        replica.model.gate.clear()
        answers = [await one.ask(batch_of(rows(1)), number=1)]
        await asyncio.to_thread(replica.model.begun.wait, BOUND_S)
        answers += [await one.ask(batch_of(rows(2)), number=2)]
        answers += [await other.ask(batch_of(rows(3), rows(4)), number=1)]
        answers += [await third.ask(batch_of(rows(5)), number=1)]
        await until(lambda: replica.consumer.in_flight == 4)
        replica.model.gate.set()
        assert [value_of((await answer.done())[0]) for answer in answers] == [2, 4, 6, 10]
        assert replica.model.sizes == [1, 4]


async def test_replies_and_acknowledgements_leave_nothing_behind(amqp_url: str) -> None:
    """Three hundred batches in flight at a time, more than the library's writer takes at once; then nothing is left."""
    async with gateway_at(amqp_url) as asking:
        async with Replica(amqp_url) as replica:
            for _ in range(3):
                answers = [await asking.ask(batch_of(rows(at))) for at in range(300)]
                assert [value_of((await a.done())[0]) for a in answers] == [2 * at for at in range(300)]
            await until(lambda: replica.consumer.in_flight == 0)
        assert await asking.waiting() == 0


async def test_large_tensors_cross_whole(amqp_url: str) -> None:
    """Of many frames, both ways."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        array = rows(*range(100_000))
        (result,) = await (await asking.ask(batch_of(array))).done()
        assert (array_of(result) == array * 2).all()


async def test_a_reply_too_large_for_one_message_goes_member_by_member(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker would close the channel of who sends it, and with it what others wait for."""
    monkeypatch.setattr("workers.feed.LARGEST_REPLY", 1000)
    monkeypatch.setattr("workers.feed.HEADERS", 500)
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        batch = batch_of(rows(*range(40)), rows(*range(50)), rows(*range(500)))
        first, second, third = await (await asking.ask(batch)).done()
        assert len(array_of(first)) == 40
        assert len(array_of(second)) == 50
        assert failure_in(third).reason == "too_large"


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_an_expired_member_does_not_run(amqp_url: str) -> None:
    """It gets a typed error in its place, its neighbours their rows."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        now = time.monotonic_ns()
        batch = batch_of(rows(1), rows(2), rows(3), deadlines=[now + MINUTE, now - 1, 0])
        first, second, third = await (await asking.ask(batch)).done()
        assert failure_in(second).reason == "deadline_exceeded"
        assert (value_of(first), value_of(third)) == (2, 6)
        assert replica.model.seen == [1, 3]


async def test_deadlines_of_another_host_are_put_into_this_ones_clock(amqp_url: str) -> None:
    """Of a gateway that was heard: by its beats. Its clock is an hour ahead, so unconverted nothing would expire."""
    ahead = 3600 * 10**9

    def clock() -> int:
        return time.monotonic_ns() + ahead

    async with gateway_at(amqp_url, boot="another", clock=clock) as asking, Replica(amqp_url) as replica:
        await asking.until_ready()
        await asking.beat()
        await until(lambda: replica.consumer.fleet.offset(asking.instance))
        batch = batch_of(rows(1), rows(2), deadlines=[clock() + MINUTE, clock() - 10**9])
        first, second = await (await asking.ask(batch)).done()
        assert value_of(first) == 2
        assert failure_in(second).reason == "deadline_exceeded"


async def test_deadlines_of_a_gateway_never_heard_are_read_off_the_expiration(amqp_url: str) -> None:
    """The longest has as much left as the message; its host has just booted, so unconverted all would expire."""
    now = 2 * 10**9
    assert time.monotonic_ns() > now + MINUTE
    async with gateway_at(amqp_url, boot="another") as asking, Replica(amqp_url):
        batch = batch_of(rows(1), rows(2), deadlines=[now + MINUTE, now - 10**9])
        first, second = await (await asking.ask(batch, expiration=60)).done()
        assert value_of(first) == 2
        assert failure_in(second).reason == "deadline_exceeded"


# --- cancellations ----------------------------------------------------------------------------------------------------


async def test_members_whose_callers_have_gone_do_not_run(amqp_url: str) -> None:
    """Only those of that gateway and batch, whoever else has the same number."""
    async with gateway_at(amqp_url) as asking, gateway_at(amqp_url) as other, Replica(amqp_url) as replica:
        replica.model.gate.clear()
        await asking.ask(batch_of(rows(9)))
        await asyncio.to_thread(replica.model.begun.wait, BOUND_S)
        gone = await asking.ask(batch_of(rows(1), rows(2), rows(3)), number=5)
        theirs = await other.ask(batch_of(rows(4), rows(5), rows(6)), number=5)
        await until(lambda: replica.consumer.in_flight == 3)
        await asking.cancel(5, [0, 2, 99])
        await asking.cancel(6, [0])
        await asking.ask(batch_of(rows(7)), number=8)
        await until(lambda: replica.consumer.in_flight == 4)
        await asking.beat()
        await until(lambda: replica.consumer.fleet.offset(asking.instance))
        replica.model.gate.set()
        assert value_of((await gone.done())[1]) == 4
        assert [value_of(result) for result in await theirs.done()] == [8, 10, 12]
        assert {1, 3}.isdisjoint(replica.model.seen)


async def test_a_cancellation_that_overtakes_its_batch_counts(amqp_url: str) -> None:
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        await asking.until_ready()
        await asking.cancel(3, [0])
        await asking.beat()
        await until(lambda: replica.consumer.fleet.offset(asking.instance))
        replica.model.gate.clear()
        await asking.ask(batch_of(rows(9)), number=1)
        await asyncio.to_thread(replica.model.begun.wait, BOUND_S)
        answer = await asking.ask(batch_of(rows(1), rows(2)), number=3)
        await until(lambda: replica.consumer.in_flight == 2)
        replica.model.gate.set()
        assert value_of((await answer.done())[1]) == 4
        assert replica.model.seen == [9, 2]


# --- prefetch ---------------------------------------------------------------------------------------------------------


async def test_the_prefetch_changes_while_batches_flow(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up and down, many times, and each batch is answered exactly once, none of them by way of the suspects."""
    counts = iter([2, 64, 3, 200] * 10_000)
    monkeypatch.setattr(Prefetch, "decide", lambda self, now: next(counts))
    monkeypatch.setattr("workers.consumer.BEAT_S", 0.01)
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        await asking.until_ready()
        answers = [await asking.ask(batch_of(rows(at))) for at in range(600)]
        assert [value_of((await answer.done())[0]) for answer in answers] == [2 * at for at in range(600)]
        assert all(answer.headers == [{"sequence": 0, "final": True}] for answer in answers)
        assert len(asking.heard) > 5


async def test_no_more_is_taken_than_two_executions_need(amqp_url: str) -> None:
    """Of a model of 32 rows 64 are taken while they may be of one row each, a few once they are known to be full."""
    async with AsyncExitStack() as stack:
        asking = await stack.enter_async_context(gateway_at(amqp_url))
        replica = Replica(amqp_url)
        replica.model.gate.clear()
        answers = [await asking.ask(batch_of(rows(*range(32)))) for _ in range(100)]
        await stack.enter_async_context(replica)  # all wait already when it begins to take
        await until(lambda: replica.consumer.in_flight == 64)
        replica.model.gate.set()
        for answer in answers:
            await answer.done()
        replica.model.gate.clear()
        for _ in range(2):  # what the first of the two tells of may have been decided before
            await asking.until_ready()
        for _ in range(10):
            await asking.ask(batch_of(rows(*range(32))))
        await until(lambda: replica.consumer.in_flight == 2)
        await asking.until_ready()
        assert replica.consumer.in_flight == 2
        assert await asking.waiting() == 8


# --- bad messages -----------------------------------------------------------------------------------------------------


def frame(batch: Batch | Reply) -> bytes:
    return b"".join(encode(batch))[4:]


def lying(**changes: Any) -> Batch:
    return msgspec.structs.replace(batch_of(rows(1), rows(2), number=50), **changes)


async def poisoned(asking: Asking, count: int) -> list[dict[str, Any]]:
    """Wait for that many poison records."""
    records: list[dict[str, Any]] = []
    async with asyncio.timeout(BOUND_S):
        while len(records) < count:
            records += await asking.poison()
    return records


async def test_messages_that_cannot_be_run_are_put_aside(amqp_url: str) -> None:
    """With cause and digest, not their payload; neighbours before and after are served."""
    bad = [b"", b"\x80garbage" * 10, frame(Reply(50, [], Timing())), frame(lying(members=[]))]
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        before = await asking.ask(batch_of(rows(1)))
        for body in bad:
            await asking.publish(body, correlation_id="50")
        after = await asking.ask(batch_of(rows(2)))
        assert value_of((await before.done())[0]) == 2
        assert value_of((await after.done())[0]) == 4
        records = await poisoned(asking, len(bad))
        assert {record["digest"] for record in records} == {hashlib.sha256(body).hexdigest() for body in bad}
        assert all((record["model"], record["version"]) == ("m", 1) and record["cause"] for record in records)
        await until(lambda: replica.consumer.in_flight == 0)


async def test_who_waits_for_a_batch_that_cannot_be_run_hears_of_it(amqp_url: str) -> None:
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        answer = await asking.ask(lying(inputs=[Column("z", "FP32", (4,), [bytes(16), bytes(32)])]))
        failures = [failure_in(result) for result in await answer.done()]
        assert [failure.reason for failure in failures] == ["internal", "internal"]
        assert failures[0].error_id


async def test_a_suspect_that_says_nothing_of_its_attempts_is_put_aside(amqp_url: str) -> None:
    """Or more than there are, or of the wrong kind: none runs."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        await asking.until_ready()
        asking.answers[50] = Answer(1)
        batch = frame(batch_of(rows(1), number=50))
        for headers in ({}, {"attempt": 0, "member": 0}, {"attempt": 4, "member": 0}, {"attempt": "1", "member": 0}):
            await asking.publish(batch, queue=suspect_queue("m", 1), headers=headers, correlation_id="50")
        await poisoned(asking, 4)
        assert replica.model.seen == []


@pytest.mark.parametrize("suspect", [False, True], ids=["infer", "suspect"])
@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE)
async def test_one_whose_properties_cannot_be_read_is_put_aside(
    amqp_url: str, properties: Properties, suspect: bool, logged: list[EventDict]
) -> None:
    """Neither requeued nor the end of a connection, which would be that of each replica in turn."""
    queue = suspect_queue("m", 1) if suspect else infer_queue("m", 1)
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        before = await asking.ask(batch_of(rows(1)))
        await asking.publish_unreadable("", queue, frame(lying()), properties)
        (record,) = await poisoned(asking, 1)
        after = await asking.ask(batch_of(rows(2)))
        assert (value_of((await before.done())[0]), value_of((await after.done())[0])) == (2, 4)
        assert record["cause"] == "it names no reply queue"
        assert record["digest"] == hashlib.sha256(frame(lying())).hexdigest()
        await until(lambda: replica.consumer.in_flight == 0)
        assert await asking.waiting(queue) == 0
    assert "broker lost" not in {entry["event"] for entry in logged}


@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE)
async def test_beats_and_events_that_cannot_be_read_are_dropped(
    amqp_url: str, properties: Properties, logged: list[EventDict]
) -> None:
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        await asking.until_ready()
        await asking.publish_unreadable(BEATS, GATEWAY, b"no beat", properties)
        await asking.publish_unreadable(EVENTS, cancel_key("m", 1), b"no cancellation", properties)
        await asking.beat()
        await until(lambda: replica.consumer.fleet.offset(asking.instance))
        assert value_of((await (await asking.ask(batch_of(rows(1)))).done())[0]) == 2
    events = [entry["event"] for entry in logged]
    assert "broker lost" not in events
    assert events.count("neither beat nor cancellation") == 2


# --- beats ------------------------------------------------------------------------------------------------------------


async def test_beats_tell_how_it_stands(amqp_url: str) -> None:
    """From the start, before there is a model; then what its load found."""
    made = version()
    consumer = Consumer(amqp_url, new_instance("replica"), version(outputs=[], attempt=3), "cuda:0")
    running = asyncio.create_task(consumer.run())
    async with gateway_at(amqp_url) as asking:
        await until(lambda: asking.heard)
        assert (asking.heard[0].state, asking.heard[0].signature, asking.heard[0].attempt) == (STARTING, b"", 3)
        consumer.say(FAILED, "it does not load")
        await until(lambda: asking.heard[-1].state == FAILED)
        assert asking.heard[-1].reason == "it does not load"
        replica = Replica(amqp_url, made)
        consumer.serve(replica.worker, "mind the gap")
        await asking.until_ready()
        last = asking.heard[-1]
        assert msgspec.msgpack.decode(last.signature, type=Signature) == made.signature
        assert (last.max_batch, last.note, last.warmup, last.device) == (32, "mind the gap", [(1, 0.001)], "cuda:0")
        assert (last.boot, last.model, last.version) == (beats.boot_id(), "m", 1)
        await consumer.drain(5.0)
        await asyncio.wait_for(running, BOUND_S)
        await until(lambda: asking.heard[-1].state == DRAINING)
        await replica.worker.close()


async def test_beats_carry_true_numbers(amqp_url: str) -> None:
    """How long batches waited, what share of the time the model ran, how long for how many rows; nothing when idle."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        await asking.until_ready()
        seen = len(asking.heard)
        replica.model.gate.clear()
        first = await asking.ask(batch_of(rows(1)))
        await asyncio.to_thread(replica.model.begun.wait, BOUND_S)
        second = await asking.ask(batch_of(rows(2, 3)))
        await until(lambda: asking.heard[-1].in_flight == 2)
        held = time.monotonic()
        await until(lambda: time.monotonic() - held > 0.2)
        replica.model.gate.set()
        await first.done()
        await second.done()
        await until(lambda: any(beat.samples for beat in asking.heard[seen:]))
        busy = next(beat for beat in asking.heard[seen:] if beat.samples)
        assert [sampled for sampled, _ in busy.samples] == [1, 2]
        assert busy.samples[0][1] >= 0.2
        assert 0.15 < busy.busy <= 1
        assert busy.queue_wait >= 0.1e9
        await asking.until_ready()
        idle = asking.heard[-1]
        assert (idle.samples, idle.busy, idle.queue_wait, idle.in_flight) == ([], 0, 0, 0)
        assert idle.state == READY


async def test_a_beat_comes_each_second(amqp_url: str) -> None:
    """Also when it is busy, and with no more than sixteen samples."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url):
        await asking.until_ready()
        while len(asking.heard) < 4:
            await (await asking.ask(batch_of(rows(1)))).done()
        sent = [beat.sent for beat in asking.heard if beat.state == READY]
        gaps = [(later - earlier) / 1e9 for earlier, later in itertools.pairwise(sent)]
        assert all(0.9 < gap < 1.95 for gap in gaps), gaps
        assert max(len(beat.samples) for beat in asking.heard) == 16


# --- draining ---------------------------------------------------------------------------------------------------------


async def test_draining_under_load_loses_nothing(amqp_url: str) -> None:
    """Two replicas leave one after the other while batches come; a third is there. No batch is delivered twice."""
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as last:
        answers = []
        for _ in range(2):
            async with Replica(amqp_url) as leaving:
                await asking.until_ready(2)
                answers += [(at, await asking.ask(batch_of(rows(at)))) for at in range(400)]
                assert leaving.model.sizes
        for at, answer in answers:
            assert value_of((await answer.done())[0]) == 2 * at
            assert answer.headers == [{"sequence": 0, "final": True}]
        assert last.model.sizes


async def test_draining_waits_for_what_was_taken(amqp_url: str) -> None:
    """Said at once, so that nobody sends more; answered before it leaves; what came later stays for others."""
    async with gateway_at(amqp_url) as asking:
        async with Replica(amqp_url) as replica:
            await asking.until_ready()
            replica.model.gate.clear()
            answer = await asking.ask(batch_of(rows(1)))
            await asyncio.to_thread(replica.model.begun.wait, BOUND_S)
            draining = asyncio.create_task(replica.consumer.drain(BOUND_S))
            await until(lambda: asking.heard[-1].state == DRAINING)
            await until(lambda: not replica.consumer.consuming)
            await asking.ask(batch_of(rows(2)))
            assert not draining.done()
            replica.model.gate.set()
            await draining
            assert value_of((await answer.done())[0]) == 2
            assert replica.model.seen == [1]
        assert await asking.waiting() == 1


async def test_what_a_drain_cuts_off_is_answered_by_another(amqp_url: str) -> None:
    async with gateway_at(amqp_url) as asking, Replica(amqp_url) as replica:
        replica.model.gate.clear()
        answer = await asking.ask(batch_of(rows(1), rows(2)))
        await asyncio.to_thread(replica.model.begun.wait, BOUND_S)
        await replica.consumer.drain(0.1)
        async with Replica(amqp_url):
            assert [value_of(result) for result in await answer.done()] == [2, 4]
            assert set(answer.parts) == {0, 1}
