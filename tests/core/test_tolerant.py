"""What is not readable of a message costs that, and no connection; what is not readable of a conversation ends it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import aio_pika
import pamqp.frame
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aiormq.connection import ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic, Connection
from pamqp.header import ContentHeader
from structlog.testing import capture_logs
from structlog.typing import EventDict

from core.broker import Link, exchanges
from core.tolerant import Receiver
from core.topology import BEATS
from tests.unreadable import NO_UTF8, UNREADABLE, Properties, publish
from tests.workers.asking import BOUND_S, until


class Ears:
    """A link that hears everything on `beats`."""

    def __init__(self, url: str) -> None:
        self.heard: list[AbstractIncomingMessage] = []
        self.opened = self.lost = 0
        self.link = Link(url, "ears", self._opened, self._lost, listens=False)

    async def _opened(self, connection: AbstractConnection) -> None:
        self.opened += 1
        self.channel = await connection.channel(publisher_confirms=False)
        await exchanges(self.channel)
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(BEATS, "#")
        await queue.consume(self._hear, no_ack=True)

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        self.heard.append(message)

    def _lost(self) -> None:
        self.lost += 1


@asynccontextmanager
async def ears_at(url: str) -> AsyncIterator[Ears]:
    ears = Ears(url)
    running = asyncio.create_task(ears.link.run())
    assert await ears.link.until_up(BOUND_S)
    yield ears
    assert (ears.opened, ears.lost) == (1, 0)
    await ears.link.close()
    await asyncio.wait_for(running, BOUND_S)


@pytest.fixture
def logged() -> Iterator[list[EventDict]]:
    with capture_logs() as entries:
        yield entries


@pytest.mark.parametrize("properties", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_message_comes_without_properties_that_cannot_be_read(
    amqp_url: str, properties: Properties, logged: list[EventDict]
) -> None:
    """On the connection that is there, before and after others."""
    async with ears_at(amqp_url) as ears:
        exchange = await ears.channel.get_exchange(BEATS)
        await exchange.publish(aio_pika.Message(b"first", correlation_id="1"), "a")
        await publish(ears.channel, BEATS.encode(), b"b", b"second", properties)
        await exchange.publish(aio_pika.Message(b"third", correlation_id="3"), "c")
        await until(lambda: len(ears.heard) == 3)
        assert [message.body for message in ears.heard] == [b"first", b"second", b"third"]
        assert [message.correlation_id for message in ears.heard] == ["1", None, "3"]
        assert not ears.heard[1].headers
    (entry,) = [entry for entry in logged if entry["event"] == "a message cannot be read whole"]
    assert len(entry["error"]) <= 200


async def test_a_message_comes_with_what_can_be_read_of_its_routing_key(amqp_url: str) -> None:
    async with ears_at(amqp_url) as ears:
        await publish(ears.channel, BEATS.encode(), b"b.\xff", b"body", Properties())
        await publish(ears.channel, BEATS.encode(), b"c", b"", Properties())
        await until(lambda: len(ears.heard) == 2)
        first, second = ears.heard
        assert (first.exchange, first.routing_key, first.body) == (BEATS, "b.�", b"body")
        assert (second.routing_key, second.body) == ("c", b"")


# --- frames -------------------------------------------------------------------------------------------------------


class Silent:
    """A connection without channels of ours."""

    channels: Mapping[int, object] = {}

    def heard(self) -> None: ...


async def received(data: bytes) -> ReceivedFrame:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await Receiver(reader, Silent()).get_frame()


def framed(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 7, len(payload)) + payload + b"\xce"


async def test_a_delivery_keeps_what_acknowledges_it() -> None:
    """Whatever its exchange is called."""
    method = struct.pack(">I", Basic.Deliver.index) + b"\x03tag" + struct.pack(">QB", 99, 1) + NO_UTF8 + b"\x01k"
    _, channel, frame = await received(framed(1, method))
    assert isinstance(frame, Basic.Deliver)
    assert (channel, frame.consumer_tag, frame.delivery_tag, frame.redelivered) == (7, "tag", 99, True)
    assert (frame.exchange, frame.routing_key) == ("��", "k")


@given(st.binary(max_size=200), st.integers(0, 1 << 63))
def test_whatever_the_properties_the_body_has_its_size(properties: bytes, size: int) -> None:
    _, _, frame = asyncio.run(received(framed(2, struct.pack(">HHQ", 60, 0, size) + properties)))
    assert isinstance(frame, ContentHeader)
    assert frame.body_size == size


HONEST = Basic.Deliver("tag", 1, False, "beats", "key")


@pytest.mark.parametrize(
    "data",
    [
        framed(2, b"short"),
        framed(1, struct.pack(">I", Basic.Deliver.index) + b"\xff"),
        framed(1, struct.pack(">I", Connection.Blocked.index) + NO_UTF8),
        framed(1, b"\xff\xff\xff\xff"),
        framed(9, b"what"),
        pamqp.frame.marshal(HONEST, 1)[:-1] + b"x",
    ],
    ids=["no header", "no delivery", "of the conversation", "no method", "no kind", "no end"],
)
async def test_what_is_no_message_ends_the_connection(data: bytes) -> None:
    with pytest.raises(InvalidFrameError):
        await received(data)


async def test_a_peer_that_leaves() -> None:
    whole = pamqp.frame.marshal(HONEST, 1)
    with pytest.raises(AMQPConnectionError, match="the connection ended"):
        await received(whole[:-3])
    with pytest.raises(StopAsyncIteration):
        await received(b"")
    reader = asyncio.StreamReader()
    reader.set_exception(ConnectionResetError())
    with pytest.raises(AMQPConnectionError, match="ConnectionReset"):
        await Receiver(reader, Silent()).get_frame()
