"""A channel that publishes batches and takes replies in plain calls: the hot path under aio-pika.

The library's own calls make a task, two futures and a lock for each publish. Here its frames are built by hand, and
what comes back is heard as `core/express.py` says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pamqp.encode
import pamqp.frame
from aiormq.abc import AbstractConnection
from pamqp import commands

from core.datatypes import Buffer
from core.express import Delivered, Express, unheard
from core.trace import Context, headers_of
from workers.messages import frame_length

CONFIRMED, UNROUTABLE, REFUSED = "confirmed", "unroutable", "refused"
Settled = Callable[[str], None]
Received = Callable[[Delivered], None]

_FRAME = struct.Struct(">BHI")
_HEAD = struct.Struct(">HHQH")
_BASIC = 60
_HEADER_FRAME, _BODY_FRAME, _END = 2, 3, b"\xce"
_FLAGS = 1 << 13 | 1 << 12 | 1 << 10 | 1 << 9 | 1 << 8 | 1 << 7
"""headers, delivery_mode, correlation_id, reply_to, expiration, message_id."""
_TRANSIENT = b"\x01"


class Wire(Express):
    """`received` gets each delivery; each publish's `settled` gets CONFIRMED, UNROUTABLE or REFUSED, once."""

    def __init__(self, connection: AbstractConnection, number: int, received: Received) -> None:
        super().__init__(connection, number, confirms=True)
        self._received: Received | None = received
        self._unsettled: dict[int, Settled] = {}
        self._methods: dict[str, bytes] = {}
        self._reply_to = self._headers = b""
        self._fields: dict[str, Any] = {}

    async def listen(self, queue: str, headers: Mapping[str, Any]) -> None:
        """Make the exclusive queue that replies come to; `headers` go with each publish. Raises AMQPError."""
        await self.queue_declare(queue, exclusive=True, arguments={"x-queue-type": "classic"})
        self._reply_to = _short(queue)
        self._fields = dict(headers)
        self._headers = pamqp.encode.field_table(self._fields) + _TRANSIENT
        await self.basic_consume(queue, unheard, no_ack=True)

    def post(
        self,
        queue: str,
        number: int,
        ttl_ms: int,
        frame: Sequence[Buffer],
        settled: Settled,
        context: Context | None = None,
    ) -> None:
        """Publish the buffers of a frame to a queue. `number` is the correlation id, `context` the span that the
        message belongs under, where it is traced."""
        self.delivery_tag = tag = self.delivery_tag + 1
        self._unsettled[tag] = settled
        size = frame_length(frame[0])
        headers = self._headers if context is None else self._traced(context)
        properties = headers + _digits(number) + self._reply_to + _digits(ttl_ms) + _digits(tag)
        head = _HEAD.pack(_BASIC, 0, size, _FLAGS) + properties
        parts: list[Buffer] = [self._method(queue), self._begin(_HEADER_FRAME, len(head)), head, _END]
        self.put(b"".join(parts + self._body([frame[0][4:], *frame[1:]], size)))

    def let_go(self) -> None:
        """Its connection is gone: nothing that is still heard counts."""
        self._received = None
        self._unsettled.clear()

    # --- out ------------------------------------------------------------------------------------------------------

    def _traced(self, context: Context) -> bytes:
        return pamqp.encode.field_table(self._fields | headers_of(context)) + _TRANSIENT

    def _method(self, queue: str) -> bytes:
        """The frame that announces a publish to `queue`."""
        method = self._methods.get(queue)
        if method is None:
            publish = commands.Basic.Publish(exchange="", routing_key=queue, mandatory=True)
            method = self._methods[queue] = pamqp.frame.marshal(publish, self.number)
        return method

    def _body(self, body: list[Buffer], size: int) -> list[Buffer]:
        """A body's frames, of at most the connection's frame size."""
        limit = self.max_content_size
        if size <= limit:
            return [self._begin(_BODY_FRAME, size), *body, _END]
        whole, parts = memoryview(b"".join(body)), list[Buffer]()
        for at in range(0, size, limit):
            piece = whole[at : at + limit]
            parts += (self._begin(_BODY_FRAME, len(piece)), piece, _END)
        return parts

    def _begin(self, kind: int, size: int) -> bytes:
        return _FRAME.pack(kind, self.number, size)

    # --- in -------------------------------------------------------------------------------------------------------

    def delivered(self, message: Delivered) -> None:
        if self._received is not None:
            self._received(message)

    def returned(self, message: Delivered) -> None:
        self._settle(int(message.properties.message_id or 0), UNROUTABLE)

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        outcome = CONFIRMED if taken else REFUSED
        for each in [each for each in self._unsettled if each <= tag] if multiple else (tag,):
            self._settle(each, outcome)

    def _settle(self, tag: int, outcome: str) -> None:
        settled = self._unsettled.pop(tag, None)
        if settled is not None:
            self.handle(settled, outcome)


def _short(text: str) -> bytes:
    data = text.encode()
    return bytes([len(data)]) + data


def _digits(number: int) -> bytes:
    data = b"%d" % number
    return bytes([len(data)]) + data
