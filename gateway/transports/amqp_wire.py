"""A channel that publishes batches and takes replies in plain calls: the hot path under aio-pika.

The library's own calls make a task, two futures and a lock for each publish, and a task for each delivery. So this
subclass of aiormq's channel hears confirms, returns and deliveries where they are read; the frames of a publish are
built by hand and put into the connection's own write queue. Everything else is the library's.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pamqp.encode
import pamqp.frame
import structlog
from aiormq.abc import AbstractConnection, ChannelFrame, DeliveredMessage
from aiormq.channel import Channel
from pamqp import commands

from core.datatypes import Buffer
from core.trace import Context, headers_of
from workers.messages import frame_length

log = structlog.get_logger(__name__)

CONFIRMED, UNROUTABLE, REFUSED = "confirmed", "unroutable", "refused"
Settled = Callable[[str], None]
Received = Callable[[DeliveredMessage], None]

_FRAME = struct.Struct(">BHI")
_HEAD = struct.Struct(">HHQH")
_BASIC = 60
_HEADER_FRAME, _BODY_FRAME, _END = 2, 3, b"\xce"
_FLAGS = 1 << 13 | 1 << 12 | 1 << 10 | 1 << 9 | 1 << 8 | 1 << 7
"""headers, delivery_mode, correlation_id, reply_to, expiration, message_id."""
_TRANSIENT = b"\x01"


class Wire(Channel):
    """`received` gets each delivery; each publish's `settled` gets CONFIRMED, UNROUTABLE or REFUSED, once."""

    def __init__(self, connection: AbstractConnection, number: int, received: Received) -> None:
        super().__init__(connection, number, publisher_confirms=True, on_return_raises=False)
        self._received: Received | None = received
        self._unsettled: dict[int, Settled] = {}
        self._backlog: deque[ChannelFrame] = deque()
        self._methods: dict[str, bytes] = {}
        self._reply_to = self._headers = b""
        self._fields: dict[str, Any] = {}

    @classmethod
    async def on(cls, connection: AbstractConnection, received: Received) -> Wire:
        """A wire on a channel of its own of an open connection."""
        number = max(connection.channels, default=0) + 1
        wire = cls(connection, number, received)
        connection.channels[number] = wire
        await wire.open()
        return wire

    async def listen(self, queue: str, headers: Mapping[str, Any]) -> None:
        """Make the exclusive queue that replies come to; `headers` go with each publish. Raises AMQPError."""
        await self.queue_declare(queue, exclusive=True, arguments={"x-queue-type": "classic"})
        self._reply_to = _short(queue)
        self._fields = dict(headers)
        self._headers = pamqp.encode.field_table(self._fields) + _TRANSIENT
        await self.basic_consume(queue, _unheard, no_ack=True)

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
        self._write(b"".join(parts + self._body([frame[0][4:], *frame[1:]], size)))

    def let_go(self) -> None:
        """Its connection is gone: nothing that is still heard counts."""
        self._received = None
        self._unsettled.clear()
        self._backlog.clear()

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

    def _write(self, payload: bytes) -> None:
        frame = ChannelFrame(payload=payload, should_close=False)
        if not self._backlog:
            try:
                self.write_queue.put_nowait(frame)
                return
            except asyncio.QueueFull:
                self.create_task(self._write_backlog())
        self._backlog.append(frame)

    async def _write_backlog(self) -> None:
        """More was published in one go than the library's writer takes: in order, as it gets room."""
        while self._backlog:
            await self.write_queue.put(self._backlog[0])
            if self._backlog:
                self._backlog.popleft()

    # --- in: called by the library's reader -----------------------------------------------------------------------

    async def _on_deliver_frame(self, frame: commands.Basic.Deliver) -> None:
        message = await self._read_content(frame, await self._get_frame())  # type: ignore[arg-type]
        if self._received is None:
            return
        try:
            self._received(message)
        except Exception:
            log.exception("a reply could not be handled")

    async def _on_return_frame(self, frame: commands.Basic.Return) -> None:
        message = await self._read_content(frame, await self._get_frame())  # type: ignore[arg-type]
        self._settle(int(message.header.properties.message_id or 0), UNROUTABLE)

    async def _on_confirm_frame(self, frame: Any) -> None:
        outcome = CONFIRMED if isinstance(frame, commands.Basic.Ack) else REFUSED
        last = frame.delivery_tag
        if not frame.multiple:
            self._settle(last, outcome)
            return
        for tag in [tag for tag in self._unsettled if tag <= last]:
            self._settle(tag, outcome)

    def _settle(self, tag: int, outcome: str) -> None:
        settled = self._unsettled.pop(tag, None)
        if settled is None:
            return
        try:
            settled(outcome)
        except Exception:
            log.exception("a confirm could not be handled")


async def _unheard(message: DeliveredMessage) -> None:
    """Deliveries do not come this way: see `_on_deliver_frame`."""


def _short(text: str) -> bytes:
    data = text.encode()
    return bytes([len(data)]) + data


def _digits(number: int) -> bytes:
    data = b"%d" % number
    return bytes([len(data)]) + data
