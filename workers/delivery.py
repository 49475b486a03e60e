"""A message of an infer or suspect queue → a batch that may run. Pure.

Whoever may publish at the broker is a gateway of ours, or a stranger with its password: a batch that lies about itself
would shift its neighbours' rows when it is merged with them, so its pieces are measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from core.datatypes import DATATYPES
from core.express import Delivered
from core.topology import ATTEMPT, BOOT, INSTANCE, MEMBER, SUSPECT_ATTEMPTS
from repository.records import TensorSpec, Version
from workers.messages import Batch, Column, decode
from workers.signatures import fits

REPLIES = "reply."
"""How the name of each reply queue begins: nothing else is answered."""


MOST_ROWS = 1 << 20
"""Of one message: far more than a version may batch. Rows of an empty tensor take no bytes that would bound them."""
MOST_SIZE = (1 << 31) - 1
"""Of one dimension."""


class Delivery(msgspec.Struct):
    """`home`: the batch's id at its gateway (`batch.id` becomes one of ours). `attempt`: 0 of a whole batch; else the
    try that this is of member `member`. `shift`: between its gateway's clock and ours, None where unknown."""

    tag: int
    body: bytes
    batch: Batch
    home: int
    reply_to: str
    gateway: str
    boot: str
    headers: dict[str, object]
    expiration_ms: int | None
    attempt: int = 0
    member: int = 0
    shift: int | None = 0
    arrived: int = 0
    started: int = 0


def read(message: Delivered, version: Version, suspect: bool) -> Delivery:
    """Raises ValueError, with the cause, for what cannot be run or not be answered."""
    properties = message.properties
    reply_to = properties.reply_to
    if not reply_to.startswith(REPLIES):
        raise ValueError("it names no reply queue")
    batch = decode(message.body)
    if not isinstance(batch, Batch):
        raise ValueError("it is no batch")
    if properties.correlation_id != str(batch.id):
        raise ValueError("its correlation id is not its batch's")
    check(batch, version)
    headers: dict[str, object] = dict(properties.headers)
    delivery = Delivery(
        tag=message.delivery_tag,
        body=message.body,
        batch=batch,
        home=batch.id,
        reply_to=reply_to,
        gateway=str(headers.get(INSTANCE, "")),
        boot=str(headers.get(BOOT, "")),
        headers=headers,
        expiration_ms=_milliseconds(properties.expiration),
    )
    if suspect:
        delivery.attempt = _number(headers, ATTEMPT, 1, SUSPECT_ATTEMPTS)
        delivery.member = _number(headers, MEMBER, 0, 1 << 20)
        if len(batch.members) != 1:
            raise ValueError("a suspect is one member by itself")
    return delivery


class Sender(NamedTuple):
    """Where a batch that cannot run came from, and how many members wait there."""

    reply_to: str
    home: int
    members: int


def sender_of(message: Delivered) -> Sender | None:
    """Who is to hear that a message is refused; None where it does not even tell that."""
    reply_to = message.properties.reply_to
    try:
        batch = decode(message.body)
    except ValueError:
        return None
    if not isinstance(batch, Batch) or not batch.members or not reply_to.startswith(REPLIES):
        return None
    return Sender(reply_to, batch.id, len(batch.members))


def check(batch: Batch, version: Version) -> None:
    """Raises ValueError unless the batch has the form that the version's signature allows, and each member its rows."""
    if batch.batched != (version.max_batch > 0):
        raise ValueError("it batches where the model does not, or the other way round")
    if not batch.members or (len(batch.members) > 1 and not batch.batched):
        raise ValueError(f"it has {len(batch.members)} members")
    rows = [member.rows for member in batch.members]
    if min(rows) < 1 or sum(rows) > MOST_ROWS or any(member.deadline < 0 for member in batch.members):
        raise ValueError("a member has no rows, or a deadline before all time, or together they have too many rows")
    wanted = {spec.name: spec for spec in version.signature.inputs}
    if {column.name for column in batch.inputs} != wanted.keys() or len(batch.inputs) != len(wanted):
        raise ValueError("its inputs are not those of the model")
    for column in batch.inputs:
        _check_shape(column, wanted[column.name], batch.batched)
        _check_pieces(column, rows if batch.batched else [1])


def _check_shape(column: Column, spec: TensorSpec, batched: bool) -> None:
    """First of all: only of so many sizes, none of them huge, the product is soon known."""
    declared = spec.shape[1:] if batched else spec.shape
    if column.datatype != spec.datatype or not fits(declared, column.shape):
        raise ValueError(f"its input {column.name!r} has not the shape or the datatype that the model takes")
    if -1 in declared and any(not 0 <= size <= MOST_SIZE for size in column.shape):
        raise ValueError(f"its input {column.name!r} has not the shape of anything that is in memory")


def _check_pieces(column: Column, rows: list[int]) -> None:
    if len(column.pieces) != len(rows):
        raise ValueError(f"its input {column.name!r} has not one piece a member")
    size = DATATYPES[column.datatype].size
    if not size:
        return
    each = size * math.prod(column.shape)
    if any(len(piece) != count * each for piece, count in zip(column.pieces, rows, strict=True)):
        raise ValueError(f"a piece of its input {column.name!r} does not fill its shape")


def _milliseconds(expiration: str | None) -> int | None:
    return int(expiration) if expiration and expiration.isdecimal() else None


def _number(headers: Mapping[str, object], name: str, least: int, most: int) -> int:
    value = headers.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"its {name} is not a number from {least} to {most}")
    return value
