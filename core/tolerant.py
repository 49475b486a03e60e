"""A connection to the broker that an unreadable message does not end.

The broker carries properties and routing keys as it was given them, and the library reads them as it reads the frames
of its own conversation: with one that is no UTF-8, a table that lies about its length or a time after all calendars the
connection would be over. The message would be put back, and end the next one's. So here such a message loses what
cannot be read, its properties or its routing key, and comes like any other; whoever takes it refuses what then is
missing.

The seam is the reader of aiormq's connection, which is private to it: what ends a connection is read nowhere else.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

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

log = structlog.get_logger(__name__)

_FRAME = struct.Struct(">BHI")
"""Type, channel, length of what follows but for the byte that ends it."""
_HEADER = struct.Struct(">HHQ")
"""Class, weight, size of the body."""
_TAGS = struct.Struct(">Q?")
"""Delivery tag, redelivered."""


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
    async def _Connection__reader(self, receiver: FrameReceiver) -> None:  # noqa: N802 - the library's private name
        await super()._Connection__reader(Receiver(receiver.reader))  # type: ignore[misc]


class Receiver(FrameReceiver):
    """The frames after the connection's opening."""

    async def get_frame(self) -> ReceivedFrame:
        """Raises AMQPConnectionError where the peer is gone, InvalidFrameError for what no message explains."""
        reader = self.reader
        if reader.at_eof():
            raise StopAsyncIteration
        try:
            head = await reader.readexactly(_FRAME.size)
            kind, channel, size = _FRAME.unpack(head)
            frame = head + await reader.readexactly(size + 1)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise AMQPConnectionError(f"the connection ended: {error!r}") from error
        try:
            return pamqp.frame.unmarshal(frame)
        except Exception as error:
            if frame[-1] != FRAME_END:
                raise InvalidFrameError(str(error)) from error
            return len(frame), channel, _salvaged(kind, frame[_FRAME.size : -1], error)


def _salvaged(kind: int, payload: bytes, error: Exception) -> Basic.Deliver | ContentHeader:
    """What can be read of the frame that announces a message. Raises InvalidFrameError for any other."""
    try:
        if kind == FRAME_HEADER:
            salvaged: Basic.Deliver | ContentHeader = _header(payload)
        elif kind == FRAME_METHOD and int.from_bytes(payload[:4], "big") == Basic.Deliver.index:
            salvaged = _delivery(payload[4:])
        else:
            raise InvalidFrameError(str(error)) from error
    except (struct.error, IndexError):
        raise InvalidFrameError(str(error)) from error
    log.warning("a message cannot be read whole", part=salvaged.name, error=repr(error)[:200])
    return salvaged


def _header(payload: bytes) -> ContentHeader:
    """Without its properties."""
    _, weight, size = _HEADER.unpack_from(payload)
    return ContentHeader(weight, size)


def _delivery(payload: bytes) -> Basic.Deliver:
    consumer, at = _short(payload, 0)
    tag, redelivered = _TAGS.unpack_from(payload, at)
    exchange, at = _short(payload, at + _TAGS.size)
    key, _ = _short(payload, at)
    deliver = Basic.Deliver(consumer, tag, redelivered, routing_key=key)
    deliver.exchange = exchange  # as the library does: a name that it would not send may come
    return deliver


def _short(payload: bytes, at: int) -> tuple[str, int]:
    """A short string with what is no UTF-8 replaced, and where it ends."""
    end = at + 1 + payload[at]
    return payload[at + 1 : end].decode(errors="replace"), end
