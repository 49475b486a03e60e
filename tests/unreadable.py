"""Messages that the broker carries and its client libraries cannot read."""

from __future__ import annotations

import struct
from typing import NamedTuple

from aio_pika.abc import AbstractChannel
from aiormq.abc import ChannelFrame
from pamqp.constants import FRAME_BODY, FRAME_END_CHAR, FRAME_HEADER, FRAME_METHOD

HEADERS, CORRELATION, TIMESTAMP = 1 << 13, 1 << 10, 1 << 6
"""Flags: which properties follow."""
NO_UTF8 = b"\x02\xff\xfe"
"""A short string."""


class Properties(NamedTuple):
    flags: int = 0
    values: bytes = b""


def _table(fields: bytes) -> bytes:
    return struct.pack(">I", len(fields)) + fields


def _nested(depth: int) -> bytes:
    fields = b""
    for _ in range(depth):
        fields = b"\x01aF" + _table(fields)
    return _table(fields)


UNREADABLE: dict[str, Properties] = {
    "a correlation id that is no UTF-8": Properties(CORRELATION, NO_UTF8),
    "a header's name that is no UTF-8": Properties(HEADERS, _table(b"\x01\xffS" + struct.pack(">I", 1) + b"x")),
    "a time after all calendars": Properties(TIMESTAMP, struct.pack(">Q", (1 << 63) - 1)),
    "tables in tables": Properties(HEADERS, _nested(2000)),
}


async def publish(channel: AbstractChannel, exchange: bytes, key: bytes, body: bytes, properties: Properties) -> None:
    """Through a channel without confirms, whatever the library thinks of it."""
    below = await channel.get_underlay_channel()
    method = struct.pack(">HHH", 60, 40, 0) + _short(exchange) + _short(key) + b"\x00"
    header = struct.pack(">HHQH", 60, 0, len(body), properties.flags) + properties.values
    frames = [(FRAME_METHOD, method), (FRAME_HEADER, header), *([(FRAME_BODY, body)] if body else [])]
    payload = b"".join(
        struct.pack(">BHI", kind, below.number, len(each)) + each + FRAME_END_CHAR for kind, each in frames
    )
    await below.connection.write_queue.put(ChannelFrame(payload=payload, should_close=False))


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text
