"""Channels whose messages are taken, and sent, by plain calls: the hot path under aio-pika.

The library has a task for each connection, one for each channel and a queue between, and its decoder, which builds an
object for whatever a frame may hold, takes some 25 µs for the two that announce a message: more than all that Penstock
does for a small batch at the broker. So on an `Express` deliveries, confirms and returns are taken where their bytes
are read (`core/tolerant.py` reads them), and what is put goes straight to the socket. Everything else of a channel, its
opening, declaring, consuming, closing, is the library's, through the library's queues: on one channel a frame of ours
may overtake one of the library's that waits there, but never lands within one.

Like all that is read of a message (`core/tolerant.py`), properties that cannot be read are none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self, cast

import pamqp.decode
import structlog
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.constants import FRAME_BODY, FRAME_HEADER, FRAME_METHOD

log = structlog.get_logger(__name__)

_METHOD = struct.Struct(">I")
_HEADER = struct.Struct(">HHQ")
"""Class, weight, size of the body."""
_FLAGS = struct.Struct(">H")
_TAGS = struct.Struct(">QB")
"""Delivery tag, and bits: the lowest says of a delivery that it comes again, of a confirm that it is for all before it
too."""
_LENGTH = struct.Struct(">I")
_SHORT, _TABLE = -1, 0
_ORDER = (
    ("content_type", _SHORT), ("content_encoding", _SHORT), ("headers", _TABLE), ("delivery_mode", 1), ("priority", 1),
    ("correlation_id", _SHORT), ("reply_to", _SHORT), ("expiration", _SHORT), ("message_id", _SHORT), ("timestamp", 8),
    ("type", _SHORT), ("user_id", _SHORT), ("app_id", _SHORT), ("cluster_id", _SHORT),
)  # fmt: skip
"""Properties in the order of their flags, from the highest bit down, each with its form or its bytes (AMQP 0-9-1,
4.2.6.1 and its basic class)."""
_KNOWN = 512
"""Bytes up to which a table of headers is remembered: most messages of a connection have the same."""
_NONE: Mapping[str, Any] = MappingProxyType({})


class Properties(NamedTuple):
    """What Penstock reads of a message's. Empty where there is none."""

    headers: Mapping[str, Any] = _NONE
    correlation_id: str = ""
    reply_to: str = ""
    expiration: str = ""
    message_id: str = ""


class Delivered(NamedTuple):
    """A delivery, or one that the broker returns: then without its first three."""

    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes


class Road(Protocol):
    """A connection that takes bytes at once."""

    def put(self, frames: bytes) -> None: ...


class Express(Channel):
    """What comes goes to `delivered`, `returned` and `confirmed`; a failure there is logged and ends nothing."""

    def __init__(self, connection: AbstractConnection, number: int, confirms: bool) -> None:
        super().__init__(connection, number, publisher_confirms=confirms, on_return_raises=False)
        self._road = cast(Road, connection)
        self._coming: Coming | None = None

    @classmethod
    async def opened(cls, connection: AbstractConnection, *values: Any) -> Self:
        """A channel of its own of an open connection of `core/tolerant.py`'s; `values` are the subclass's."""
        number = max(connection.channels, default=0) + 1
        channel = cls(connection, number, *values)
        connection.channels[number] = channel
        await channel.open()
        return channel

    def delivered(self, message: Delivered) -> None: ...

    def returned(self, message: Delivered) -> None: ...

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None: ...

    def put(self, frames: bytes) -> None:
        """Send whole frames; they are lost where the connection is."""
        self._road.put(frames)

    def take(self, kind: int, data: bytes, at: int, end: int) -> bool:
        """The frame of this kind whose content is `data[at:end]`; False: it is one for the library.

        Raises IndexError for one that is cut short.
        """
        if kind == FRAME_METHOD:
            return self._take_method(data, at, end)
        coming = self._coming
        if coming is None:
            return False
        if kind == FRAME_HEADER:
            coming.missing = size_of(data, at, end)
            coming.properties = _read_properties(data[at + _HEADER.size : end])
        elif kind == FRAME_BODY:
            coming.pieces.append(data[at:end])
            coming.missing -= end - at
        else:
            return False
        if coming.missing <= 0:
            self._coming = None
            self.handle(self.returned if coming.back else self.delivered, coming.message())
        return True

    def _take_method(self, data: bytes, at: int, end: int) -> bool:
        (method,) = _unpack(_METHOD, data, at, end)
        at += _METHOD.size
        if method == Basic.Deliver.index:
            self._coming = announced(data, at, end)
        elif method == Basic.Ack.index or method == Basic.Nack.index:
            tag, bits = _unpack(_TAGS, data, at, end)
            self.handle(self.confirmed, tag, bool(bits & 1), method == Basic.Ack.index)
        elif method == Basic.Return.index:
            _, at = _short(data, at + 2, end)  # after its code comes its text
            self._coming = Coming("", 0, False, data, at, end)
            self._coming.back = True
        else:
            return False
        return True

    def handle(self, method: Callable[..., None], *values: Any) -> None:
        """Call; a failure is logged."""
        try:
            method(*values)
        except Exception:
            log.exception("what came from the broker could not be handled", channel=repr(self))


async def unheard(message: object) -> None:
    """What the library is given to consume with: an `Express`'s deliveries never come to it."""


class Coming:
    """A message of which a part has been read; `data[at:end]` has its exchange and routing key."""

    __slots__ = ("again", "back", "consumer", "exchange", "key", "missing", "pieces", "properties", "tag")

    def __init__(self, consumer: str, tag: int, again: bool, data: bytes, at: int, end: int) -> None:
        self.consumer = consumer
        self.tag = tag
        self.again = again
        self.exchange, at = _short(data, at, end)
        self.key, _ = _short(data, at, end)
        self.back = False
        self.properties = Properties()
        self.missing = 0
        self.pieces: list[bytes] = []

    def message(self) -> Delivered:
        body = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        return Delivered(self.consumer, self.tag, self.again, self.exchange, self.key, self.properties, body)


def announced(data: bytes, at: int, end: int) -> Coming:
    """The message that a delivery announces, whose arguments these are. Raises IndexError for one that is cut short."""
    consumer, at = _short(data, at, end)
    tag, bits = _unpack(_TAGS, data, at, end)
    return Coming(consumer, tag, bool(bits & 1), data, at + _TAGS.size, end)


def size_of(data: bytes, at: int, end: int) -> int:
    """Bytes of the body that a content header announces. Raises IndexError for one that is cut short."""
    _, _, size = _unpack(_HEADER, data, at, end)
    return int(size)


def _unpack(form: struct.Struct, data: bytes, at: int, end: int) -> tuple[Any, ...]:
    """What stands at `at`. Raises IndexError where that goes beyond `end`, into the next frame."""
    if end - at < form.size:
        raise IndexError("a frame is cut short")
    return form.unpack_from(data, at)


def _short(data: bytes, at: int, end: int) -> tuple[str, int]:
    """A short string with what is no UTF-8 replaced, and where it ends. Raises IndexError for one that is cut short."""
    after = at + 1 + data[at] if at < end else end + 1
    if after > end:
        raise IndexError("a string longer than its frame")
    return data[at + 1 : after].decode(errors="replace"), after


def _read_properties(data: bytes) -> Properties:
    if len(data) < _FLAGS.size:
        return Properties()
    try:
        return properties(data)
    except Exception as error:  # the library's decoder of tables has many
        log.warning("a message cannot be read whole", part="properties", error=repr(error)[:200])
        return Properties()


def properties(data: bytes) -> Properties:
    """Flags and properties, as a content header has them after its size. Raises whatever is wrong with them."""
    (flags,) = _FLAGS.unpack_from(data)
    if flags & 1:
        raise ValueError("there are no more than fourteen properties")
    found: dict[str, Any] = {}
    at = _FLAGS.size
    for name, form in _present(flags):
        if form == _SHORT:
            after = at + 1 + data[at]
            if name in Properties._fields:
                found[name] = data[at + 1 : after].decode()
        elif form == _TABLE:
            after = at + _LENGTH.size + _LENGTH.unpack_from(data, at)[0]
            raw = data[at:after]
            found[name] = _known_table(raw) if len(raw) <= _KNOWN else _table(raw)
        else:
            after = at + form
        at = after
    if at > len(data):
        raise ValueError("properties longer than their frame")
    return Properties(**found)


@lru_cache(256)
def _present(flags: int) -> tuple[tuple[str, int], ...]:
    return tuple(each for bit, each in enumerate(_ORDER) if flags & 1 << (15 - bit))


def _table(raw: bytes) -> Mapping[str, Any]:
    return MappingProxyType(pamqp.decode.field_table(raw)[1])


_known_table = lru_cache(64)(_table)
