"""What comes on such a channel: the same as the library reads, whichever way the bytes are cut."""

from __future__ import annotations

import asyncio
import inspect
import math
import socket
from typing import Any

import aiormq.connection
import pamqp.frame
import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import InvalidFrameError
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader
from structlog.testing import capture_logs

from core.express import Delivered, Express, Properties, properties
from core.tolerant import Receiver, _Below
from tests.unreadable import UNREADABLE
from tests.unreadable import Properties as Unreadable

NUMBER = 3


class Heard(Express):
    """Keeps what it is told; a delivery whose body is `fail` fails."""

    def __init__(self) -> None:
        self._coming = None
        self.told: list[Any] = []

    def delivered(self, message: Delivered) -> None:
        if message.body == b"fail":
            raise ValueError("no")
        self.told.append(message)

    def returned(self, message: Delivered) -> None:
        self.told.append(("returned", message))

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        self.told.append((tag, multiple, taken))

    def __repr__(self) -> str:
        return "<Heard>"


class Site:
    """A connection that gets bytes; `told`, and the frames that are left to the library."""

    def __init__(self) -> None:
        self.channel = Heard()
        self.channels = {NUMBER: self.channel}
        self.read = 0
        self.left: list[Any] = []

    def heard(self) -> None:
        self.read += 1

    async def take(self, *pieces: bytes) -> list[Any]:
        reader = asyncio.StreamReader()
        receiver = Receiver(reader, self)

        async def run() -> None:
            async for _, _, frame in receiver:
                self.left.append(frame)

        running = asyncio.create_task(run())
        for piece in pieces:
            reader.feed_data(piece)
            for _ in range(4):
                await asyncio.sleep(0)
        reader.feed_eof()
        await running
        return self.channel.told


def frame(value: Any, number: int = NUMBER) -> bytes:
    return bytes(pamqp.frame.marshal(value, number))


def content(body: bytes, of: Basic.Properties | None = None, cut: int = 1 << 17) -> bytes:
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
    header = ContentHeader(0, len(body), of or Basic.Properties())
    return frame(header) + b"".join(frame(ContentBody(piece)) for piece in pieces)


def delivery(body: bytes, tag: int = 1, of: Basic.Properties | None = None, cut: int = 1 << 17) -> bytes:
    return frame(Basic.Deliver("c", tag, False, "", "infer.m.1")) + content(body, of, cut)


TEXT = st.one_of(st.none(), st.text(max_size=20).filter(lambda text: len(text.encode()) < 256))
OF_LIBRARY = st.builds(
    Basic.Properties,
    content_type=TEXT,
    content_encoding=TEXT,
    headers=st.one_of(
        st.none(),
        st.dictionaries(
            st.text(min_size=1, max_size=8),
            st.one_of(st.integers(-(1 << 40), 1 << 40), st.booleans(), st.text(max_size=300)),
            max_size=4,
        ),
    ),
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.one_of(st.none(), st.integers(0, 255)),
    correlation_id=TEXT,
    reply_to=TEXT,
    expiration=TEXT,
    message_id=TEXT,
    message_type=TEXT,
    user_id=TEXT,
    app_id=TEXT,
)


@given(OF_LIBRARY)
def test_properties_are_what_the_library_reads(given: Basic.Properties) -> None:
    """Whichever of the fourteen are there."""
    raw = ContentHeader(0, 0, given).marshal()
    _, _, read = pamqp.frame.unmarshal(pamqp.frame.marshal(ContentHeader(0, 0, given), 1))
    assert isinstance(read, ContentHeader)
    ours, library = properties(raw[12:]), read.properties
    assert dict(ours.headers) == (library.headers or {})
    for name in ("correlation_id", "reply_to", "expiration", "message_id"):
        assert getattr(ours, name) == (getattr(library, name) or ""), name


@given(st.data())
def test_it_does_not_matter_how_the_bytes_are_cut(data: st.DataObject) -> None:
    """Deliveries in one frame or many, confirms, a return and the library's own frames, in one read or byte by byte."""
    bodies = data.draw(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
    cut = data.draw(st.integers(1, 40))
    of = Basic.Properties(correlation_id="7", headers={"final": True})
    stream = b"".join(delivery(body, tag, of, cut) for tag, body in enumerate(bodies, 1))
    stream += frame(Basic.Ack(5, True)) + frame(Basic.Qos()) + frame(Basic.Nack(6, False, True))
    stream += frame(Basic.Return(312, "NO_ROUTE", "", "infer.m.1")) + content(b"back", Basic.Properties(message_id="9"))
    stream += frame(Channel.Flow(True)) + frame(Basic.Ack(1), number=8)
    at = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[begin:end] for begin, end in zip([0, *at], [*at, len(stream)], strict=True)]
    site = Site()
    told = asyncio.run(site.take(*(piece for piece in pieces if piece)))
    *deliveries, ack, nack, (word, back) = told
    assert [(each.delivery_tag, each.body) for each in deliveries] == list(enumerate(bodies, 1))
    assert {(each.consumer_tag, each.routing_key, each.redelivered) for each in deliveries} == {
        ("c", "infer.m.1", False)
    }
    assert [each.properties.correlation_id for each in deliveries] == ["7"] * len(bodies)
    assert all(each.properties.headers == {"final": True} for each in deliveries)
    assert (ack, nack) == ((5, True, True), (6, False, False))
    assert (word, back.body, back.properties.message_id, back.routing_key) == ("returned", b"back", "9", "infer.m.1")
    assert [type(each).__name__ for each in site.left] == ["Qos", "Flow", "Ack"]
    assert site.read > 0


async def test_one_that_comes_again_says_so() -> None:
    told = await Site().take(frame(Basic.Deliver("c", 1 << 40, True, "e", "k")) + content(b""))
    assert told == [Delivered("c", 1 << 40, True, "e", "k", Properties(), b"")]


async def test_a_failure_ends_nothing() -> None:
    """It is logged, and the next comes."""
    with capture_logs() as logged:
        told = await Site().take(delivery(b"fail") + delivery(b"fine"))
    assert [each.body for each in told] == [b"fine"]
    assert [entry["event"] for entry in logged] == ["what came from the broker could not be handled"]


@pytest.mark.parametrize("unreadable", UNREADABLE.values(), ids=UNREADABLE)
async def test_properties_that_cannot_be_read_are_none(unreadable: Unreadable) -> None:
    """But for a time, which nobody here reads."""
    header = ContentHeader(0, 4).marshal()[:12] + unreadable.flags.to_bytes(2, "big") + unreadable.values
    framed = b"\x02" + NUMBER.to_bytes(2, "big") + len(header).to_bytes(4, "big") + header + b"\xce"
    stream = frame(Basic.Deliver("c", 1, False, "", "k")) + framed + frame(ContentBody(b"body"))
    with capture_logs() as logged:
        told = await Site().take(stream + delivery(b"next"))
    assert [(each.body, each.properties) for each in told] == [(b"body", Properties()), (b"next", Properties())]
    if unreadable is not UNREADABLE["a time after all calendars"]:
        (entry,) = logged
        assert (entry["event"], len(entry["error"]) <= 200) == ("a message cannot be read whole", True)


@given(st.binary(max_size=100))
def test_whatever_the_properties_the_body_comes(tail: bytes) -> None:
    header = ContentHeader(0, 4).marshal()[:12] + tail
    framed = b"\x02" + NUMBER.to_bytes(2, "big") + len(header).to_bytes(4, "big") + header + b"\xce"
    stream = frame(Basic.Deliver("c", 1, False, "", "k")) + framed + frame(ContentBody(b"body"))
    assert [each.body for each in asyncio.run(Site().take(stream))] == [b"body"]


CUT_SHORT = {
    "no tag": (1, Basic.Deliver.index.to_bytes(4, "big") + b"\x01c"),
    "a name longer than its frame": (1, Basic.Deliver.index.to_bytes(4, "big") + b"\xff"),
    "no confirm": (1, Basic.Ack.index.to_bytes(4, "big")),
    "no return": (1, Basic.Return.index.to_bytes(4, "big") + b"\x01"),
    "no method": (1, b"\x00"),
}


@pytest.mark.parametrize("name", CUT_SHORT)
async def test_what_is_cut_short_ends_the_connection(name: str) -> None:
    kind, payload = CUT_SHORT[name]
    framed = bytes([kind]) + NUMBER.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + b"\xce"
    with pytest.raises(InvalidFrameError):
        await Site().take(framed + delivery(b"next"))


async def test_a_header_cut_short_ends_the_connection() -> None:
    begun = frame(Basic.Deliver("c", 1, False, "", "k"))
    with pytest.raises(InvalidFrameError):
        await Site().take(begun + b"\x02\x00\x03\x00\x00\x00\x01x\xce" + delivery(b"next"))


async def test_content_without_a_message_is_the_librarys() -> None:
    """Which knows what it has asked for."""
    site = Site()
    assert not await site.take(content(b"body"))
    assert [type(each) for each in site.left] == [ContentHeader, ContentBody]


# --- out ----------------------------------------------------------------------------------------------------------


class Below(_Below):
    def __init__(self) -> None:
        self._out = None


class Writer:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.written.append(data)


def test_what_is_put_is_written_at_once_while_there_is_a_connection() -> None:
    below, writer = Below(), Writer()
    below.put(b"before it is there")
    below._out = writer  # type: ignore[assignment]
    below.put(b"now")
    writer.closing = True
    below.put(b"after it is gone")
    assert writer.written == [b"now"]


def test_the_librarys_names_are_where_they_were() -> None:
    """The seam: its reader, its writer, and when it last got a frame."""
    for name in ("_Connection__reader", "_Connection__writer"):
        assert inspect.iscoroutinefunction(getattr(aiormq.connection.Connection, name))
    reads = aiormq.connection.Connection._Connection__reader.__code__.co_names  # type: ignore[attr-defined]
    assert "_Connection__last_frame_time" in reads


async def test_the_librarys_writer_never_waits_for_room() -> None:
    """A peer that reads nothing: what is put fills the socket, and a frame after which the library waits goes all the
    same, or no beat would."""
    peer, ours = socket.socketpair()
    with peer:
        _, writer = await asyncio.open_connection(sock=ours)
        below = Below()
        below.write_queue = asyncio.Queue()
        below._closing = asyncio.get_running_loop().create_future()
        unblocked = asyncio.Event()
        unblocked.set()
        vars(below)["_Connection__connection_unblocked"] = unblocked
        writing = asyncio.create_task(below._Connection__writer(writer))
        await asyncio.sleep(0)
        below.put(bytes(16 << 20))
        drained = asyncio.get_running_loop().create_future()
        await below.write_queue.put(ChannelFrame(payload=b"beat", should_close=False, drain_future=drained))
        await asyncio.wait_for(drained, 5)
        below._closing.set_result(None)
        writer.transport.abort()
        writing.cancel()
        await asyncio.wait([writing])


async def test_what_comes_keeps_the_connection_alive() -> None:
    """Though the library sees none of its frames."""
    below = Below()
    below.loop = asyncio.get_running_loop()
    below._Connection__last_frame_time = -math.inf
    below.heard()
    assert below._Connection__last_frame_time == pytest.approx(below.loop.time(), abs=1)
