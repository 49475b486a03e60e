"""The broker, or the way to it, fails with batches in flight: every caller hears, in time, and it all comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pamqp.frame
import pytest
from aio_pika.abc import AbstractIncomingMessage
from pamqp.commands import Basic

from core.errors import Unavailable
from gateway.hub import Hub
from gateway.transports.amqp import Amqp
from tests.gateway.transports.replicas import (
    BOUND_S,
    ECHO,
    Replica,
    hub_at,
    no_task_is_left,
    opened,
    replica_at,
    silent,
    until,
)
from tests.gateway.transports.sending import answered, firsts, reasons, send, soon
from tests.services import Broker
from tests.toxics import Link, Toxics
from tests.workers.samples import batch_of, rows
from workers.messages import Batch, Reply

__all__ = ["no_task_is_left"]
FAR_S = 30.0


@pytest.fixture
def way(amqp_url: str, toxiproxy: Toxics) -> Link:
    """The gateway's way to the broker, to be disturbed; the replica has another."""
    return toxiproxy.link(amqp_url)


async def only_late(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
    """Answers the second try of a batch."""
    if sum(taken.id == batch.id for taken, _ in replica.taken) > 1:
        await replica.answer(batch, message)


async def test_what_is_in_flight_is_sent_once_more(amqp_url: str, way: Link) -> None:
    """Over the next connection, whose replies have a queue of their own."""
    async with replica_at(amqp_url, ECHO, only_late) as replica, hub_at(way.url) as hub:
        transport = await opened(hub, ECHO)
        futures = [send(transport, batch_of(rows(at), number=at)) for at in range(4)]
        await until(lambda: len(replica.taken) == 4)
        begun = time.monotonic()
        way.cut()
        await until(lambda: not hub.link.up)
        assert transport.window == 0
        assert isinstance(transport.away, Unavailable)
        assert isinstance(hub.away, Unavailable)
        way.mend()
        assert [firsts(await answered(future)) for future in futures] == [[0], [1], [2], [3]]
        assert time.monotonic() - begun < 10
        assert len(replica.taken) == 8
        assert len({message.reply_to for _, message in replica.taken}) == 2
        await until(lambda: transport.window == 2)
        assert transport.away is None


async def test_nothing_is_sent_three_times(amqp_url: str, way: Link) -> None:
    """A batch whose second try is lost too fails with an error that says so."""
    async with replica_at(amqp_url, ECHO, silent) as replica, hub_at(way.url) as hub:
        transport = await opened(hub, ECHO)
        future = send(transport, batch_of(rows(1)))
        for tries in (1, 2):
            await until(lambda tries=tries: len(replica.taken) == tries)  # type: ignore[misc]
            way.cut()
            await until(lambda: not hub.link.up)
            way.mend()
        assert reasons(await answered(future)) == ["worker_lost"]


async def test_a_batch_does_not_wait_long_for_a_connection(amqp_url: str, way: Link) -> None:
    """Its callers hear within seconds that it was lost, and can try elsewhere."""
    async with replica_at(amqp_url, ECHO, silent) as replica, hub_at(way.url) as hub:
        transport = await opened(hub, ECHO)
        future = send(transport, batch_of(rows(1)))
        await until(lambda: replica.taken)
        begun = time.monotonic()
        way.cut()
        assert reasons(await answered(future)) == ["worker_lost"]
        assert 2.5 < time.monotonic() - begun < 10


async def test_nobody_left_to_answer_is_not_sent_again(amqp_url: str, way: Link) -> None:
    """There must be time left for an answer."""
    async with replica_at(amqp_url, ECHO, silent) as replica, hub_at(way.url) as hub:
        transport = await opened(hub, ECHO)
        future = send(transport, batch_of(rows(1), deadlines=(soon(1.5),)))
        await until(lambda: replica.taken)
        await asyncio.sleep(1.5)
        way.cut()
        assert reasons(await answered(future)) == ["worker_lost"]
        way.mend()


async def test_a_half_open_connection_is_given_up(amqp_url: str, way: Link) -> None:
    """Nothing arrives, nothing ends: after six silent seconds it is cut, and what was in flight goes over the next."""

    async def all_but_the_first(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
        if len(replica.taken) > 1:
            await replica.answer(batch, message)

    async with replica_at(amqp_url, ECHO, all_but_the_first) as replica, hub_at(way.url) as hub:
        transport = await opened(hub, ECHO)
        future = send(transport, batch_of(rows(1), deadlines=(soon(FAR_S),)))
        await until(lambda: replica.taken)
        begun = time.monotonic()
        way.hold()
        await until(lambda: transport.window == 0, bound=5)
        unheard = send(transport, batch_of(rows(2), number=2, deadlines=(soon(FAR_S),)))
        await until(lambda: not hub.link.up, bound=9)
        way.mend()
        assert firsts(await answered(future)) == [1]
        assert firsts(await answered(unheard)) == [2]
        assert time.monotonic() - begun < 15


async def test_a_channel_that_the_broker_closes(amqp_url: str) -> None:
    """What it had confirmed is sent again; what it had not may be what it closed the channel for."""
    async with replica_at(amqp_url, ECHO, only_late) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        known = send(transport, batch_of(rows(1), number=1))
        await until(lambda: replica.taken)
        await until(lambda: all(flight.confirmed for flight in transport.flights))
        wire = hub.line.wire
        assert wire is not None
        wire.put(pamqp.frame.marshal(Basic.Ack(12345), wire.number))
        blamed = send(transport, batch_of(rows(2), number=2))
        assert firsts(await answered(known)) == [1]
        assert reasons(await answered(blamed)) == ["worker_lost"]
        await until(lambda: transport.window == 2)


async def test_a_reply_queue_that_is_deleted(amqp_url: str) -> None:
    """By an operator, or with the node that held it: the connection is made anew."""
    async with replica_at(amqp_url, ECHO, only_late) as replica, hub_at(amqp_url) as hub:
        transport = await opened(hub, ECHO)
        future = send(transport, batch_of(rows(1)))
        await until(lambda: replica.taken)
        reply_to = replica.taken[0][1].reply_to
        wire = hub.line.wire
        assert wire is not None
        assert reply_to is not None
        await wire.queue_delete(reply_to)
        assert firsts(await answered(future)) == [1]


# --- a broker of this module's own --------------------------------------------------------------------------------


@pytest.fixture
async def site(broker: Broker) -> AsyncIterator[tuple[Hub, Amqp, list[Replica]]]:
    """A hub with an open window, and a replica that is started again by `serve_again`."""
    async with hub_at(broker.url) as hub:
        replicas = [Replica(broker.url, ECHO)]
        await replicas[0].start()
        yield hub, await opened(hub, ECHO), replicas
        await replicas[-1].stop()


async def flood(transport: Amqp, until_: asyncio.Event) -> list[tuple[float, Reply]]:
    """Send batches as a batcher does, while the window has room; (seconds it took, reply) of each."""
    taken: list[tuple[float, Reply]] = []
    waiting: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        begun = time.monotonic()
        reply = await send(transport, batch_of(rows(number), number=number, deadlines=(soon(10),)))
        taken.append((time.monotonic() - begun, reply))

    number = 0
    while not until_.is_set():
        if len(waiting) < transport.window:
            number += 1
            task = asyncio.create_task(one(number))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.sleep(0.002)
    await asyncio.wait_for(asyncio.gather(*waiting), BOUND_S)
    assert len(taken) == number
    return taken


@pytest.mark.parametrize("end", ["kill", "stop", "stop_app"])
async def test_a_broker_that_goes_and_comes_back(
    broker: Broker, site: tuple[Hub, Amqp, list[Replica]], end: str
) -> None:
    """Each batch has one answer, within its deadline; refusals are typed; then all is as before."""
    hub, transport, replicas = site
    over = asyncio.Event()
    flooding = asyncio.create_task(flood(transport, over))
    await until(lambda: len(replicas[0].taken) > 20)
    await asyncio.to_thread(getattr(broker, end))
    await until(lambda: not hub.link.up)
    assert isinstance(transport.away, Unavailable)
    await replicas[0].stop()
    await asyncio.to_thread(broker.start_app if end == "stop_app" else broker.start)
    replicas.append(Replica(broker.url, ECHO))
    await replicas[-1].start()
    await until(lambda: len(replicas[-1].taken) > 20)
    over.set()
    replies = await flooding
    failed = [reasons(reply)[0] for _, reply in replies if not isinstance(reply.results[0], list)]
    assert set(failed) <= {"worker_lost", "deadline_exceeded"}
    assert len(failed) <= 4
    assert max(took for took, _ in replies) < 12


async def test_an_alarm_closes_the_door_at_once(broker: Broker, site: tuple[Hub, Amqp, list[Replica]]) -> None:
    """While the broker blocks its publishers nothing is sent and new callers are told so; then it opens by itself."""
    hub, transport, _ = site
    assert firsts(await answered(send(transport, batch_of(rows(1))))) == [1]
    wire = hub.line.wire
    try:
        await asyncio.to_thread(broker.memory_alarm, True)
        begun = time.monotonic()
        future = send(transport, batch_of(rows(2), deadlines=(soon(FAR_S),)))
        await until(lambda: transport.away is not None, bound=2)
        assert isinstance(transport.away, Unavailable)
        assert transport.window == 0
        assert reasons(await answered(future)) == ["unavailable"]
        assert time.monotonic() - begun < 5
        await asyncio.sleep(7)
        assert hub.line.wire is wire, "a blocked connection was taken for a dead one"
    finally:
        await asyncio.to_thread(broker.memory_alarm, False)
    await until(lambda: transport.window == 2)
    assert transport.away is None
    assert firsts(await answered(send(transport, batch_of(rows(3), number=3)))) == [3]
