"""A connection to the broker that an unreadable message does not end.

The broker carries properties and routing keys as it was given them, and the library reads them as it reads the frames
of its own conversation: with one that is no UTF-8, a table that lies about its length or a time after all calendars the
connection would be over. The message would be put back, and end the next one's. So here such a message loses what
cannot be read, its properties or its routing key, and comes like any other; whoever takes it refuses what then is
missing.

The bytes are read here for a second reason: frames of a channel that is an `Express` (`core/express.py`) are taken
where they are read.

The seam is the reader and the writer of aiormq's connection, which are private to it: what ends a connection is read
nowhere else.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import Any, Protocol

import aio_pika
import aiormq.abc
import aiormq.connection
import pamqp.frame
import structlog
from aio_pika.abc import TimeoutType, UnderlayConnection
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp.commands import Basic
from pamqp.constants import FRAME_END, FRAME_HEADER, FRAME_METHOD
from pamqp.header import ContentHeader
from yarl import URL

from core.express import Express, announced, size_of

log = structlog.get_logger(__name__)

_FRAME = struct.Struct(">BHI")
"""Type, channel, length of what follows but for the byte that ends it."""
METHOD_BYTES = 4
"""Class and method, before a method's arguments."""
NO_LIMIT = (1 << 31) - 1
AT_ONCE = 1 << 18
"""Bytes of one read at most."""


class Connection(aio_pika.Connection):
    """aio-pika's plain connection over one that reads tolerantly."""

    async def connect(self, timeout: TimeoutType = None) -> None:
        self.transport = await _Underlay.connect(self.url, self._on_connection_close, timeout=timeout, **self.kwargs)
        await self._on_connected()


class _Underlay(UnderlayConnection):
    @classmethod
    async def make_connection(
        cls, url: URL, timeout: TimeoutType = None, **kwargs: Any
    ) -> aiormq.abc.AbstractConnection:
        connection = _Below(url, **kwargs)
        await asyncio.wait_for(connection.connect(), timeout)
        await connection.ready()
        return connection


class _Below(aiormq.connection.Connection):
    """The library's connection, whose bytes are read and may be written here.

    Its writer waits after some frames until the socket has taken nearly all, which what is put might never let happen:
    so it has no limit to wait for. What is under way is bounded by who sends it.
    """

    _out: asyncio.StreamWriter | None = None

    def put(self, frames: bytes) -> None:
        """Write whole frames at once; they are lost where the connection is."""
        out = self._out
        if out is not None and not out.is_closing():
            out.write(frames)

    def heard(self) -> None:
        """Something has come: the library takes a peer for stuck that sends none of its frames for long."""
        self._Connection__last_frame_time = self.loop.time()

    async def _Connection__reader(self, receiver: FrameReceiver) -> None:  # noqa: N802 - the library's private name
        await super()._Connection__reader(Receiver(receiver.reader, self))  # type: ignore[misc]

    async def _Connection__writer(self, writer: asyncio.StreamWriter) -> None:  # noqa: N802 - likewise
        self._out = writer
        writer.transport.set_write_buffer_limits(high=NO_LIMIT)
        await super()._Connection__writer(writer)  # type: ignore[misc]


class Heard(Protocol):
    """What a receiver needs of its connection."""

    @property
    def channels(self) -> Mapping[int, object]: ...

    def heard(self) -> None: ...


class Receiver(FrameReceiver):
    """The frames after the connection's opening, but for those that an `Express` takes: these are its own at once."""

    def __init__(self, reader: asyncio.StreamReader, connection: Heard) -> None:
        super().__init__(reader)
        self._connection = connection
        self._data = b""
        self._at = 0

    async def get_frame(self) -> ReceivedFrame:
        """Raises AMQPConnectionError where the peer is gone, InvalidFrameError for what no message explains."""
        while True:
            missing = self._missing()
            if missing:
                await self._read(missing)
            elif (frame := self._next()) is not None:
                return frame

    def _missing(self) -> int:
        """Bytes that the next frame still needs, as far as that is known."""
        there = len(self._data) - self._at
        if there < _FRAME.size:
            return _FRAME.size - there
        size: int = _FRAME.unpack_from(self._data, self._at)[2]
        return max(0, _FRAME.size + size + 1 - there)

    async def _read(self, missing: int) -> None:
        rest = self._data[self._at :]
        try:
            if len(rest) < _FRAME.size:
                came = await self.reader.read(AT_ONCE)
            else:
                came = await self.reader.readexactly(missing)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise AMQPConnectionError(f"the connection ended: {error!r}") from error
        if not came and not rest:
            raise StopAsyncIteration
        if not came:
            raise AMQPConnectionError("the connection ended within a frame")
        self._data, self._at = rest + came, 0
        self._connection.heard()

    def _next(self) -> ReceivedFrame | None:
        """The frame that begins here, which is whole; None where it has been taken."""
        data, begin = self._data, self._at
        kind, number, size = _FRAME.unpack_from(data, begin)
        at = begin + _FRAME.size
        end = at + size
        self._at = end + 1
        if data[end] != FRAME_END:
            raise InvalidFrameError("a frame does not end where it should")
        channel = self._connection.channels.get(number)
        if isinstance(channel, Express):
            try:
                if channel.take(kind, data, at, end):
                    return None
            except IndexError as error:
                raise InvalidFrameError(str(error)) from error
        try:
            return pamqp.frame.unmarshal(data[begin : self._at])
        except Exception as error:
            return size + _FRAME.size + 1, number, _salvaged(kind, data[at:end], error)


def _salvaged(kind: int, payload: bytes, error: Exception) -> Basic.Deliver | ContentHeader:
    """What can be read of the frame that announces a message. Raises InvalidFrameError for any other."""
    try:
        if kind == FRAME_HEADER:
            salvaged: Basic.Deliver | ContentHeader = ContentHeader(0, size_of(payload, 0, len(payload)))
        elif kind == FRAME_METHOD and int.from_bytes(payload[:METHOD_BYTES], "big") == Basic.Deliver.index:
            salvaged = _delivery(payload)
        else:
            raise InvalidFrameError(str(error)) from error
    except IndexError:
        raise InvalidFrameError(str(error)) from error
    log.warning("a message cannot be read whole", part=salvaged.name, error=repr(error)[:200])
    return salvaged


def _delivery(payload: bytes) -> Basic.Deliver:
    coming = announced(payload, METHOD_BYTES, len(payload))
    deliver = Basic.Deliver(coming.consumer, coming.tag, coming.again, routing_key=coming.key)
    deliver.exchange = coming.exchange  # as the library does: a name that it would not send may come
    return deliver
