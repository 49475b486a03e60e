"""Frames by hand: what the library reads out of them, and in which order they come."""

from __future__ import annotations

import asyncio
from typing import cast

import aio_pika
import pamqp.frame
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from core.express import Express
from core.tolerant import Connection
from tests.workers.asking import until
from workers.intake import Intake
from workers.outlet import KNOWN_ADDRESSES, Outlet, table


class Bare:
    """What an outlet needs of a channel."""

    number = 7
    max_content_size = 10

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def put(self, frames: bytes) -> None:
        self.written.append(frames)


def outlet_on(bare: Bare) -> Outlet:
    return Outlet(cast(Express, bare))


def frames_in(data: bytes) -> list[object]:
    frames: list[object] = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == 7
        frames.append(frame)
        data = data[size:]
    return frames


@given(st.binary(max_size=50), st.integers(0, 1 << 63), st.integers(0, 1 << 20))
def test_a_reply_is_read_as_it_was_meant(body: bytes, number: int, member: int) -> None:
    """Of any length, cut as the connection asks."""

    async def written() -> bytes:
        headers = table({"sequence": 0, "final": True, "member": member})
        return outlet_on(Bare()).reply("reply.g", number, headers, body)

    method, header, *parts = frames_in(asyncio.run(written()))
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("", "reply.g", False)
    assert isinstance(header, ContentHeader)
    assert header.body_size == len(body)
    assert header.properties.headers == {"sequence": 0, "final": True, "member": member}
    assert (header.properties.correlation_id, header.properties.delivery_mode) == (str(number), 1)
    assert b"".join(part.value for part in parts if isinstance(part, ContentBody)) == body
    assert len(parts) == -(-len(body) // 10)


async def test_events_acknowledgements_and_rejections() -> None:
    outlet = outlet_on(Bare())
    sent = outlet.event("beats", "k", b"x") + outlet.ack(1 << 40) + outlet.reject(3)
    method, _, _, ack, reject = frames_in(sent)
    assert isinstance(method, Basic.Publish)
    assert isinstance(ack, Basic.Ack)
    assert isinstance(reject, Basic.Reject)
    assert (method.exchange, method.routing_key) == ("beats", "k")
    assert (ack.delivery_tag, ack.multiple) == (1 << 40, False)
    assert (reject.delivery_tag, reject.requeue) == (3, False)


async def test_what_is_sent_in_one_turn_is_one_write() -> None:
    """And what is sent in the next is the next."""
    bare = Bare()
    outlet = outlet_on(bare)
    outlet.send(b"a", b"b")
    outlet.send(b"c")
    await outlet.written()
    outlet.send(b"d")
    await outlet.written()
    assert bare.written == [b"abc", b"d"]


async def test_addresses_are_remembered_within_bounds() -> None:
    """Reply queues have a fresh name for each connection."""
    outlet = outlet_on(Bare())
    for at in range(3 * KNOWN_ADDRESSES):
        outlet.event("", f"reply.{at}", b"")
    assert len(outlet._methods) <= KNOWN_ADDRESSES


async def test_closing_drops_what_waits() -> None:
    bare = Bare()
    outlet = outlet_on(bare)
    outlet.send(b"a")
    outlet.close()
    await outlet.written()
    assert not bare.written


async def test_what_was_sent_is_with_the_broker_before_what_is_asked_next(amqp_url: str) -> None:
    """Though the one goes straight to the socket and the other through the library's queue: so a drain may end. Here
    a queue is bound next, and gets nothing of what was sent before."""
    connection = await aio_pika.connect(amqp_url, connection_class=Connection)
    async with connection:
        assert connection.transport is not None
        intake = await Intake.opened(connection.transport.connection)
        queue = (await intake.queue_declare(exclusive=True)).queue or ""
        await intake.exchange_declare("outlet", exchange_type="fanout", auto_delete=True)
        heard: list[bytes] = []
        await intake.take_from(queue, lambda message: heard.append(message.body), no_ack=True)
        outlet = Outlet(intake)
        for _ in range(500):
            outlet.send(outlet.event("outlet", "", bytes(10_000)))
        await outlet.written()
        await intake.queue_bind(queue, "outlet")
        outlet.send(outlet.event("outlet", "", b"next"))
        await until(lambda: heard)
        assert heard == [b"next"]
