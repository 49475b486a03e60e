"""A gateway at a real broker: what reaches a replica, what comes back, and what the callers hear when it does not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from structlog.typing import EventDict

from core import beats
from core.errors import NotReady
from core.settings import Settings
from core.topology import BEATS, BOOT, INSTANCE, infer_queue
from core.trace import Context, headers_of, pack
from gateway.transports.amqp import Amqp
from gateway.transports.base import UNSERVED
from tests.gateway.transports.replicas import (
    BOUND_S,
    ECHO,
    Replica,
    body_of,
    hub_at,
    no_task_is_left,
    opened,
    replica_at,
    silent,
    until,
)
from tests.gateway.transports.sending import SECOND, answered, firsts, reasons, send, soon
from tests.unreadable import UNREADABLE, Properties, publish
from tests.workers.samples import array_of, batch_of, failure_in, rows, version
from workers.messages import Batch, Cancel, Column, Failure, Member, Output, Reply, Timing

__all__ = ["no_task_is_left"]


# --- there and back -----------------------------------------------------------------------------------------------


async def test_a_message_says_whose_it_is_and_how_long_it_counts(amqp_url: str) -> None:
    """Its properties are those that the topology names."""
    async with replica_at(amqp_url, ECHO) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        deadlines = (soon(5), soon(9))
        await answered(send(transport, batch_of(rows(1), rows(2), number=40, deadlines=deadlines)))
        ((batch, message),) = replica.taken
    assert [member.deadline for member in batch.members] == list(deadlines)
    assert message.correlation_id == str(batch.id)
    assert message.reply_to is not None
    assert message.reply_to.startswith(f"reply.{hub.line.instance}.")
    assert message.headers == {INSTANCE: hub.line.instance, BOOT: beats.boot_id()}
    assert message.delivery_mode == aio_pika.DeliveryMode.NOT_PERSISTENT
    assert isinstance(message.expiration, float)
    assert 8 < message.expiration <= 9
    assert not message.redelivered


async def test_a_traced_batch_says_so_in_its_headers(amqp_url: str) -> None:
    """For whoever looks at the broker; each member says in the message what it is linked with. The reply's times are
    the gateway's clock's: from when the broker had it."""
    context = Context(0xA, 0xB, True, "vendor=1")
    async with replica_at(amqp_url, ECHO) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        traced = batch_of(rows(1), rows(2), number=40, deadlines=(soon(5), soon(9)))
        traced.context = context
        traced.members[1].trace = pack(context)
        reply = await answered(send(transport, traced))
        await answered(send(transport, batch_of(rows(1), number=41, deadlines=(soon(5),))))
        (batch, message), (_, untraced) = replica.taken
    assert {name: value for name, value in message.headers.items() if name.startswith("trace")} == headers_of(context)
    assert [member.trace for member in batch.members] == [b"", pack(context)]
    assert set(untraced.headers) == {INSTANCE, BOOT}
    assert 0 < reply.timing.published <= time.monotonic_ns()


@pytest.mark.parametrize("size", [0, 1, 131_000, 131_063, 131_064, 131_065, 262_128, 1_000_000])
async def test_bodies_of_any_size_arrive_whole(amqp_url: str, size: int) -> None:
    """Whatever number of frames they take."""
    made = version(inputs=version().signature.inputs, outputs=(), number=size + 1)
    async with replica_at(amqp_url, made, nothing) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, made)
        data = bytes(range(256)) * (size // 256) + bytes(size % 256)
        pieces: list[Any] = [memoryview(data)[: size // 2], bytearray(data[size // 2 :])]
        column = Column("x", "UINT8", (1,), pieces)
        await answered(send(transport, Batch(1, True, [Member(1), Member(1)], [column])))
        ((batch, _),) = replica.taken
    assert b"".join(batch.inputs[0].pieces) == data


async def nothing(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
    await replica.answer(batch, message, Reply(batch.id, [[]] * len(batch.members), Timing()))


async def test_many_at_once_are_all_answered(amqp_url: str) -> None:
    """More than the library's writer takes in one go, and of two versions that number their batches alike."""
    other = version(outputs=version().signature.inputs, model="other")
    async with replica_at(amqp_url, ECHO), replica_at(amqp_url, other), hub_at(amqp_url) as hub:
        first, second = await opened(hub, ECHO), await opened(hub, other)
        waiting = [send(way, batch_of(rows(at), number=at)) for at in range(1, 101) for way in (first, second)]
        replies = await asyncio.wait_for(asyncio.gather(*waiting), BOUND_S)
    assert [(reply.id, firsts(reply)) for reply in replies] == [(at, [at]) for at in range(1, 101) for _ in "12"]


async def test_a_batch_larger_than_a_message_goes_as_several(amqp_url: str) -> None:
    """And is cancelled as several; a member that is too large by itself fails alone."""
    async with replica_at(amqp_url, ECHO) as replica, hub_at(amqp_url, Settings(max_message_bytes=65_536)) as hub:
        transport = await opened(hub, ECHO)
        arrays = [rows(*[at] * count) for at, count in enumerate([1800, 1800, 1800, 5000, 1])]
        future = send(transport, batch_of(*arrays, number=3))
        transport.cancel(Cancel(3, [2, 4]))
        reply = await answered(future)
        await until(lambda: replica.cancelled)
        taken = sorted((batch for batch, _ in replica.taken), key=lambda batch: batch.id)
        assert [batch.rows for batch in taken] == [3600, 1800, 1]
        assert [entry[1:] for entry in replica.cancelled[0][1]] == [[taken[1].id, [0]], [taken[2].id, [0]]]
    assert reply.id == 3
    assert [array_of(reply.results[at])[0, 0] for at in (0, 1, 2, 4)] == [0, 1, 2, 4]
    assert failure_in(reply.results[3]).reason == "too_large"


# --- who is there -------------------------------------------------------------------------------------------------


async def test_the_window_is_this_gateways_share(amqp_url: str) -> None:
    """Two batches for each ready replica, divided among the gateways; one that is starting has none."""
    async with hub_at(amqp_url) as hub, replica_at(amqp_url, ECHO) as replica, replica_at(amqp_url, ECHO) as second:
        transport = await opened(hub, ECHO, window=4)
        assert transport.replicas == 2
        async with hub_at(amqp_url), hub_at(amqp_url):
            await until(lambda: transport.window == 2)
            assert transport.replicas == 2, "they are there for all gateways"
        second.state = beats.STARTING
        await until(lambda: transport.replicas == 1)
        replica.state = beats.DRAINING
        await until(lambda: transport.window == 0)
        assert isinstance(transport.away, NotReady)


async def test_who_falls_silent_does_not_count(amqp_url: str) -> None:
    """And listeners hear of it, as they heard of its coming."""
    heard: list[int] = []
    async with hub_at(amqp_url) as hub:
        hub.listen(lambda: heard.append(len(hub.fleet.replicas(time.monotonic_ns()))))
        async with replica_at(amqp_url, ECHO):
            transport = await opened(hub, ECHO)
            assert transport.away is None
            await until(lambda: heard and heard[-1] == 1)
        since = time.monotonic()
        await until(lambda: heard[-1] == 0)
        assert 2 < time.monotonic() - since < 10
        assert transport.window == 0
        assert len(heard) < 8


async def test_another_gateway_hears_that_state_was_written(amqp_url: str) -> None:
    changes: list[None] = []
    async with hub_at(amqp_url) as hub, hub_at(amqp_url, changed=lambda: changes.append(None)) as other:
        assert await hub.link.until_up(BOUND_S)
        assert await other.link.until_up(BOUND_S)
        await hub.announce()
        await until(lambda: changes)


async def test_what_is_no_beat_is_ignored(amqp_url: str, logged: list[EventDict]) -> None:
    async with replica_at(amqp_url, ECHO) as replica, hub_at(amqp_url) as hub:
        assert await hub.link.until_up(BOUND_S)
        exchange = await replica.channel.get_exchange(BEATS)
        for body in (b"", b"\xc1", b"\x81\xa4type\xa7replica", b"x" * 1000):
            await exchange.publish(aio_pika.Message(body), "replica.m.1", mandatory=False)
        await until(lambda: sum(entry["event"] == "a beat cannot be read" for entry in logged) == 4)
        assert firsts(await answered(send(await opened(hub, ECHO), batch_of(rows(6))))) == [6]


@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_read_ends_no_connection(
    amqp_url: str, properties: Properties, logged: list[EventDict]
) -> None:
    """A beat on which every gateway would lose its own, and a reply."""

    async def script(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        assert message.reply_to is not None
        channel = await replica.connection.channel(publisher_confirms=False)
        await publish(channel, b"", message.reply_to.encode(), body_of(Reply(1, [[GOOD]], Timing())), properties)
        await channel.close()
        await replica.answer(batch, message)

    async with replica_at(amqp_url, ECHO, script) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        channel = await replica.connection.channel(publisher_confirms=False)
        await publish(channel, BEATS.encode(), b"replica.m.1", b"no beat", properties)
        await publish(channel, BEATS.encode(), b"\xff", b"no beat", Properties())
        await until(lambda: sum(entry["event"] == "a beat cannot be read" for entry in logged) == 2)
        assert firsts(await answered(send(transport, batch_of(rows(6))))) == [6]
    assert "broker lost" not in {entry["event"] for entry in logged}


# --- what does not arrive -----------------------------------------------------------------------------------------


async def test_a_queue_that_is_not_there(amqp_url: str) -> None:
    """One more try, since a version's queue may be just being made; then its callers hear that it is not served."""
    looks: list[None] = []
    async with replica_at(amqp_url, ECHO) as replica, hub_at(amqp_url, None, lambda: looks.append(None)) as hub:
        transport = await opened(hub, ECHO)
        await replica.channel.queue_delete(infer_queue("m", 1))
        begun = time.monotonic()
        reply = await answered(send(transport, batch_of(rows(1), rows(2))))
        assert [result is UNSERVED for result in reply.results] == [True] * 2
        assert reasons(reply) == ["not_ready"] * 2
        assert looks == [None], "the repository may say that another version is to be asked"
        assert time.monotonic() - begun < 5
        for _ in range(5):  # the second try comes a quarter of a second after the first: on a busy machine too soon
            await replica.channel.queue_delete(infer_queue("m", 1))
            future = send(transport, batch_of(rows(7)))
            await replica.serve()
            reply = await answered(future)
            if reply.results[0] is not UNSERVED:
                break
        assert firsts(reply) == [7]


async def test_a_full_queue_refuses_at_once(amqp_url: str) -> None:
    async with replica_at(amqp_url, ECHO, silent) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        await replica.channel.queue_delete(infer_queue("m", 1))
        await replica.channel.declare_queue(
            infer_queue("m", 1), durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"}
        )
        deadline = (soon(10.0),)
        futures = [send(transport, batch_of(rows(at), number=at, deadlines=deadline)) for at in range(5)]
        begun = time.monotonic()
        replies = [await answered(future) for future in futures[2:]]
        assert time.monotonic() - begun < 5
        assert [reasons(reply) for reply in replies] == [["queue_full"]] * 3
        assert not futures[0].done()


async def test_a_batch_whose_deadlines_pass_is_over(amqp_url: str) -> None:
    """Its slot is free again, whether or not anybody has it."""
    async with replica_at(amqp_url, ECHO, silent), hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        late = send(transport, batch_of(rows(1), number=1, deadlines=(time.monotonic_ns() - 1,)))
        assert reasons(await answered(late)) == ["deadline_exceeded"]
        begun = time.monotonic()
        reply = await answered(send(transport, batch_of(rows(1), number=2, deadlines=(soon(0.2),))))
        assert reasons(reply) == ["deadline_exceeded"]
        assert time.monotonic() - begun < 10


async def test_a_replica_that_never_answers(amqp_url: str) -> None:
    """Its batch is sent once more, after a second that is no answer, and finds the other replica."""
    takers: list[Replica] = []

    async def script(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        takers.append(replica)
        if replica is not takers[0]:
            await replica.answer(batch, message)

    async with replica_at(amqp_url, ECHO, script), replica_at(amqp_url, ECHO, script), hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO, window=4)
        begun = time.monotonic()
        assert firsts(await answered(send(transport, batch_of(rows(5), deadlines=(soon(10),))))) == [5]
        assert 1.0 < time.monotonic() - begun < 8
        assert len(takers) == 2


async def test_batches_that_hang_take_no_slot(amqp_url: str) -> None:
    """Once they have been silent for too long: else a hung replica would close the way to the others."""
    async with replica_at(amqp_url, ECHO, silent), hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        futures = [send(transport, batch_of(rows(at), number=at, deadlines=(soon(4),))) for at in range(2)]
        await until(lambda: transport.window == 4)
        await asyncio.gather(*futures)
        await until(lambda: transport.window == 2)


async def test_repeats_have_a_budget(amqp_url: str) -> None:
    """A version whose replicas all hang is not sent everything twice."""
    async with replica_at(amqp_url, ECHO, silent, prefetch=100) as hung, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        futures = [send(transport, batch_of(rows(at), number=at, deadlines=(soon(3),))) for at in range(40)]
        replies = await asyncio.gather(*futures)
    assert {reason for reply in replies for reason in reasons(reply)} == {"deadline_exceeded"}
    assert 40 < len(hung.taken) <= 40 + 10 + 4


# --- replies of all kinds -----------------------------------------------------------------------------------------


async def test_late_and_double_replies_are_dropped(amqp_url: str) -> None:
    """Each batch is answered once, by the first."""

    async def twice(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        first = float(array_of([Output("x", "FP32", (1, 4), batch.inputs[0].pieces[0])])[0, 0])
        for value in (first, 99.0):
            output = Output("x", "FP32", (1, 4), rows(value).tobytes())
            await replica.send(message, body_of(Reply(batch.id, [[output]], Timing())))
        await message.ack()

    async with replica_at(amqp_url, ECHO, twice), hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        for at in range(3):
            assert firsts(await answered(send(transport, batch_of(rows(at), number=1)))) == [at]


async def test_members_may_be_answered_one_by_one(amqp_url: str) -> None:
    """As after a redelivery; a batch that is being tried so is not sent again."""

    async def apart(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        await replica.send(message, b"", final=False)
        await asyncio.sleep(1.6)
        for at in (2, 0, 1, 1):
            output = Output("x", "FP32", (1, 4), batch.inputs[0].pieces[at])
            await replica.send(message, body_of(Reply(0, [[output]], Timing(executed_rows=1))), member=at)
        await message.ack()

    async with replica_at(amqp_url, ECHO, apart) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        assert firsts(await answered(send(transport, batch_of(rows(1), rows(2), rows(3))))) == [1, 2, 3]
        assert len(replica.taken) == 1


GOOD = Output("x", "FP32", (1, 4), rows(1).tobytes())
TWO = [[GOOD], [GOOD]]
NONSENSE: dict[str, bytes] = {
    "empty": b"",
    "no frame": b"nonsense",
    "a frame that ends early": body_of(Reply(1, list(TWO), Timing()))[:-3],
    "a frame with more": body_of(Reply(1, list(TWO), Timing())) + b"x",
    "a batch": body_of(Batch(1, True, [Member(1)], [])),  # type: ignore[arg-type]
    "too few results": body_of(Reply(1, [[GOOD]], Timing())),
    "no outputs": body_of(Reply(1, [[], []], Timing())),
    "another name": body_of(Reply(1, [[Output("z", "FP32", (1, 4), GOOD.data)], [GOOD]], Timing())),
    "another type": body_of(Reply(1, [[Output("x", "INT32", (1, 4), GOOD.data)], [GOOD]], Timing())),
    "too many rows": body_of(Reply(1, [[Output("x", "FP32", (2, 4), rows(1, 1).tobytes())], [GOOD]], Timing())),
    "a shape not filled": body_of(Reply(1, [[Output("x", "FP32", (1, 4), b"1234")], [GOOD]], Timing())),
    "a shape below zero": body_of(Reply(1, [[Output("x", "FP32", (-1, -4), GOOD.data)], [GOOD]], Timing())),
    "times below zero": body_of(Reply(1, list(TWO), Timing(queue=-1))),
    "times of ages": body_of(Reply(1, list(TWO), Timing(compute_infer=3600 * SECOND))),
    "wild counts": body_of(Reply(1, list(TWO), Timing(executed_rows=-5))),
    "a reason that there is not": body_of(Reply(1, [[GOOD], Failure("no_such", "Traceback")], Timing())),
    "a reason that is the gateway's": body_of(Reply(1, [[GOOD], Failure("unauthenticated", "why")], Timing())),
    "an error id that no header takes": body_of(Reply(1, [[GOOD], Failure("internal", "why", "id\r\n")], Timing())),
    "no executions": body_of(Reply(1, list(TWO), Timing(executed_batches=0))),
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_an_error_of_its_callers(amqp_url: str, body: bytes, logged: list[EventDict]) -> None:
    """Under an error id that the log explains; the next batch is none the worse."""
    await speak(amqp_url, body, None, ["internal", "internal"], logged)


@pytest.mark.parametrize("member", [-1, 2, 1 << 40, "0", True, 0.0, [0]])
async def test_a_reply_to_no_member(amqp_url: str, member: object, logged: list[EventDict]) -> None:
    await speak(amqp_url, body_of(Reply(1, [[GOOD]], Timing())), member, ["internal", "internal"], logged)


async def test_nonsense_about_one_member_is_its_own(amqp_url: str, logged: list[EventDict]) -> None:
    await speak(amqp_url, b"nonsense", 1, ["fine", "internal"], logged)


async def speak(url: str, body: bytes, member: object, heard: list[str], logged: list[EventDict]) -> None:
    """Let a replica say `body` to the first batch of two, and the right thing to what is then open and the next."""

    async def script(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        if len(replica.taken) == 1:
            await replica.send(message, body, member)
        await replica.answer(batch, message)

    async with replica_at(url, ECHO, script), hub_at(url) as hub:
        transport = await opened(hub, ECHO)
        reply = await answered(send(transport, batch_of(rows(1), rows(2))))
        failures = [result for result in reply.results if isinstance(result, Failure)]
        assert [result.reason if isinstance(result, Failure) else "fine" for result in reply.results] == heard
        assert {failure.error_id for failure in failures} == {entry.get("error_id") for entry in logged} - {None}
        assert firsts(await answered(send(transport, batch_of(rows(3), number=2)))) == [3]


async def test_replies_to_nothing_are_dropped(amqp_url: str) -> None:
    """Whatever they call the batch that they answer."""

    async def script(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        for name in (None, "", "0", "-1", "x", "9" * 30, "٣", "1" * 200):
            reply = aio_pika.Message(body_of(Reply(1, [[GOOD]], Timing())), correlation_id=name)
            assert message.reply_to is not None
            await replica.channel.default_exchange.publish(reply, message.reply_to, mandatory=False)
        await replica.answer(batch, message)

    async with replica_at(amqp_url, ECHO, script), hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        for at in range(3):
            assert firsts(await answered(send(transport, batch_of(rows(at), number=at)))) == [at]


# --- leaving ------------------------------------------------------------------------------------------------------


async def test_cancellations_are_gathered(amqp_url: str) -> None:
    """Those of 10 ms go as one message; of what is not in flight nothing is said."""
    async with replica_at(amqp_url, ECHO, silent) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        futures = [send(transport, batch_of(rows(1), rows(2), number=at, deadlines=[soon(1)] * 2)) for at in (8, 9)]
        await until(lambda: len(replica.taken) == 2)
        transport.cancel(Cancel(8, [0]))
        transport.cancel(Cancel(9, [0, 1]))
        transport.cancel(Cancel(1234, [0]))
        await until(lambda: replica.cancelled)
        instance, first, second = hub.line.instance, replica.taken[0][0].id, replica.taken[1][0].id
        assert [said for _, said in replica.cancelled] == [[[instance, first, [0]], [instance, second, [0, 1]]]]
        await asyncio.gather(*futures)


async def test_closing_waits_for_what_is_in_flight(amqp_url: str) -> None:
    """But not for ever: what is not answered by then is lost."""

    async def slow(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        if batch is replica.taken[0][0]:
            await asyncio.sleep(0.3)
            await replica.answer(batch, message)

    async with replica_at(amqp_url, ECHO, slow), hub_at(amqp_url, Settings(drain_timeout_s=3.0)) as hub:
        transport = await opened(hub, ECHO)
        first, second = (send(transport, batch_of(rows(at), number=at)) for at in (1, 2))
        begun = time.monotonic()
        await transport.close()
        assert 2.9 < time.monotonic() - begun < 10
        assert firsts(await answered(first)) == [1]
        assert reasons(await answered(second)) == ["worker_lost"]
        assert transport.window == 0
        assert reasons(await answered(send(transport, batch_of(rows(1), number=3)))) == ["worker_lost"]
        await until(lambda: hub.transports == [])


async def test_nothing_is_left_at_the_broker(amqp_url: str) -> None:
    """Neither the reply queue nor the one that beats come to."""
    async with replica_at(amqp_url, ECHO) as replica:
        async with hub_at(amqp_url) as hub:
            await answered(send(await opened(hub, ECHO), batch_of(rows(1))))
            reply_to = replica.taken[0][1].reply_to
            assert reply_to is not None
        channel = await replica.connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue(reply_to, passive=True)


async def test_a_transport_tells_what_it_is(amqp_url: str) -> None:
    async with hub_at(amqp_url) as hub:
        transport = hub.transport(ECHO)
        assert isinstance(transport, Amqp)
        assert repr(transport) == "<Amqp m/1, window 0, 0 in flight>"
