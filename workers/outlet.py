"""Frames to the broker without a task, a lock or a future for each: replies with their acknowledgements, and beats.

The library's own `basic_publish` takes a channel lock and a coroutine; without confirms neither is needed. What is sent
here goes out in order, so a reply is with the broker before the acknowledgement that follows it; and what is sent in
one turn of the event loop, such as the replies of one execution, goes out in one write.
"""

from __future__ import annotations

import asyncio
import struct

import pamqp.encode
import pamqp.frame
from pamqp.commands import Basic
from pamqp.common import FieldTable

from core.express import Express

_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">HHQH")
_TAG = struct.Struct(">BHIHHQB")
_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _END = 1, 2, 3, b"\xce"
_BASIC, _ACK, _REJECT = 60, 80, 90
_HEADERS_MODE_CORRELATION, _MODE = 1 << 13 | 1 << 12 | 1 << 10, 1 << 12
_TRANSIENT = b"\x01"
KNOWN_ADDRESSES = 1024


def table(headers: FieldTable) -> bytes:
    """Message headers, encoded: for `reply`."""
    return pamqp.encode.field_table(headers)


class Outlet:
    """One channel that has no confirms. Each of its methods gives bytes for `send`."""

    def __init__(self, channel: Express) -> None:
        self._channel = channel
        self._number = channel.number
        self._room = channel.max_content_size
        self._methods: dict[tuple[str, str], bytes] = {}
        self._waiting: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def reply(self, queue: str, number: int, headers: bytes, body: bytes) -> bytes:
        """A reply to batch `number`, with `headers` as `table` gives them; dropped where nobody waits any more."""
        digits = b"%d" % number
        properties = headers + _TRANSIENT + bytes([len(digits)]) + digits
        return self._publish("", queue, _HEADERS_MODE_CORRELATION, properties, body)

    def event(self, exchange: str, key: str, body: bytes) -> bytes:
        """A message to whoever listens."""
        return self._publish(exchange, key, _MODE, _TRANSIENT, body)

    def ack(self, tag: int) -> bytes:
        return _TAG.pack(_METHOD_FRAME, self._number, 13, _BASIC, _ACK, tag, 0) + _END

    def reject(self, tag: int) -> bytes:
        """Not to come back."""
        return _TAG.pack(_METHOD_FRAME, self._number, 13, _BASIC, _REJECT, tag, 0) + _END

    def send(self, *frames: bytes) -> None:
        """Have frames written at the end of this turn of the event loop."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += frames

    async def written(self) -> None:
        """Return when everything is on its way."""
        await asyncio.sleep(0)

    def close(self) -> None:
        """Drop what waits: the connection is gone."""
        self._waiting.clear()

    def _publish(self, exchange: str, key: str, flags: int, properties: bytes, body: bytes) -> bytes:
        head = _HEADER.pack(_BASIC, 0, len(body), flags) + properties
        parts = [self._method(exchange, key), self._begin(_HEADER_FRAME, len(head)), head, _END]
        for at in range(0, len(body), self._room):
            part = body[at : at + self._room]
            parts += self._begin(_BODY_FRAME, len(part)), part, _END
        return b"".join(parts)

    def _method(self, exchange: str, key: str) -> bytes:
        """The frame that announces a message to this address."""
        method = self._methods.get((exchange, key))
        if method is None:
            if len(self._methods) >= KNOWN_ADDRESSES:
                self._methods.clear()
            publish = Basic.Publish(exchange=exchange, routing_key=key)
            method = self._methods[exchange, key] = pamqp.frame.marshal(publish, self._number)
        return method

    def _begin(self, kind: int, size: int) -> bytes:
        return _FRAME.pack(kind, self._number, size)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._channel.put(b"".join(waiting))
