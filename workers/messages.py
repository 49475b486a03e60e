"""What crosses from gateway to worker and back: the only file of `workers` that the gateway imports.

A *batch* carries rows of several callers (*members*), column by column: for each input the pieces, in member
order, whose concatenation is the whole column. Pieces are raw V2 bytes (see `core/datatypes.py`), never copied on
the way in-process. A *reply* carries one result per member, in member order: outputs or a failure.

Where a model batches, a column's `shape` is that of one row and every member brings `rows` of them. Where it does
not (`batched=False`), a batch has one member and `shape` is the whole tensor's.

Over a socket or a broker a message is one frame: a msgpack header in which every piece is replaced by its length,
then the pieces in order. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from core.datatypes import Buffer
from core.errors import BY_REASON, Internal, PenstockError, printable
from core.trace import Context

Scalar = str | int | float | bool
MOST_TOLD = 2048
"""Characters of a failure that a caller is told."""


class Member(msgspec.Struct, array_like=True, gc=False):
    """One caller's share of a batch. `deadline`: monotonic nanoseconds of this host, 0 = none. `trace`: the span that
    its execution is linked with, in 24 bytes (`core/trace.py`); empty where it is not traced."""

    rows: int
    deadline: int = 0
    trace: bytes = b""


class Column(msgspec.Struct, array_like=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    pieces: list[Buffer]


class Batch(msgspec.Struct, array_like=True):
    """`id` is unique among the batches in flight of one sender. `parameters`: the caller's own, for the model.
    `context`: the span that a message with it belongs under, where a member is traced; the frame does not have it."""

    id: int
    batched: bool
    members: list[Member]
    inputs: list[Column]
    parameters: dict[str, Scalar] = {}
    context: Context | None = None

    @property
    def rows(self) -> int:
        return sum(member.rows for member in self.members)


class Output(msgspec.Struct, array_like=True, gc=False):
    """One output of one member. `shape` is the whole tensor's, with the member's rows first where the model batches."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


class Failure(msgspec.Struct, array_like=True, gc=False):
    """A `PenstockError` on its way: rebuilt by `error()` from its reason, its message as callers may see it."""

    reason: str
    message: str
    error_id: str = ""

    def error(self) -> PenstockError:
        message = printable(self.message, MOST_TOLD)
        return BY_REASON.get(self.reason, Internal)(message, error_id=self.error_id or None)


def failure_of(error: PenstockError) -> Failure:
    return Failure(error.reason, error.message, error.error_id or "")


class Timing(msgspec.Struct, array_like=True, gc=False):
    """Of the execution that a batch went through, in nanoseconds; `executed_rows` counts those of batches it was
    merged with, `executed_batches` how many those were (a worker counts one execution for all of them).

    `started`: when it began, in the monotonic clock of whoever reads this, 0 = not known. `execution`: its number at
    its worker, from 1 on. `span`: the execution's own, in 24 bytes; empty where it has none. `published`: when the
    broker had the batch; the gateway's own note."""

    queue: int = 0
    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0
    executed_rows: int = 0
    executed_batches: int = 1
    started: int = 0
    execution: int = 0
    span: bytes = b""
    published: int = 0

    @property
    def compute(self) -> int:
        return self.compute_input + self.compute_infer + self.compute_output


class Reply(msgspec.Struct, array_like=True):
    """The answer to the batch of that id: `results[i]` belongs to `members[i]`."""

    id: int
    results: list[list[Output] | Failure]
    timing: Timing


class Cancel(msgspec.Struct, array_like=True):
    """Members (by index) of a batch whose callers have gone; rows not yet running need not run."""

    id: int
    members: list[int]


# --- frames -------------------------------------------------------------------------------------------------------

BATCH, REPLY, CANCEL = 1, 2, 3
_HEAD = struct.Struct("<IBI")
"""Length of all that follows this field, kind, length of the msgpack header."""
MAX_FRAME = (1 << 32) - 1

_encoder = msgspec.msgpack.Encoder()


class _ColumnHead(msgspec.Struct, array_like=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    pieces: list[int]


class _BatchHead(msgspec.Struct, array_like=True):
    id: int
    batched: bool
    members: list[Member]
    inputs: list[_ColumnHead]
    parameters: dict[str, Scalar]


class _OutputHead(msgspec.Struct, array_like=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: int


class _FailureHead(msgspec.Struct, array_like=True):
    reason: str
    message: str
    error_id: str


class _ResultHead(msgspec.Struct, array_like=True):
    outputs: list[_OutputHead] | None
    failure: _FailureHead | None


class _ReplyHead(msgspec.Struct, array_like=True):
    id: int
    results: list[_ResultHead]
    timing: Timing


_batch_decoder = msgspec.msgpack.Decoder(_BatchHead)
_reply_decoder = msgspec.msgpack.Decoder(_ReplyHead)
_cancel_decoder = msgspec.msgpack.Decoder(Cancel)


def encode(message: Batch | Reply | Cancel) -> list[Buffer]:
    """A message → the buffers of its frame, to be written one after the other (no piece is copied)."""
    kind, head, pieces = _head(message)
    header = _encoder.encode(head)
    size = _HEAD.size - 4 + len(header) + sum(_length(piece) for piece in pieces)
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes exceeds {MAX_FRAME}")
    return [_HEAD.pack(size, kind, len(header)) + header, *pieces]


def _head(message: Batch | Reply | Cancel) -> tuple[int, msgspec.Struct, list[Buffer]]:
    if isinstance(message, Batch):
        pieces = [piece for column in message.inputs for piece in column.pieces]
        columns = [
            _ColumnHead(c.name, c.datatype, c.shape, [_length(piece) for piece in c.pieces]) for c in message.inputs
        ]
        return (
            BATCH,
            _BatchHead(message.id, message.batched, message.members, columns, message.parameters),
            pieces,
        )
    if isinstance(message, Reply):
        results = [_result_head(result) for result in message.results]
        pieces = [o.data for result in message.results if isinstance(result, list) for o in result]
        return REPLY, _ReplyHead(message.id, results, message.timing), pieces
    return CANCEL, message, []


def _result_head(result: list[Output] | Failure) -> _ResultHead:
    if isinstance(result, Failure):
        return _ResultHead(None, _FailureHead(result.reason, result.message, result.error_id))
    return _ResultHead([_OutputHead(o.name, o.datatype, o.shape, _length(o.data)) for o in result], None)


def _length(piece: Buffer) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)


def frame_length(first: Buffer) -> int:
    """Bytes that follow the first four of a frame."""
    return int.from_bytes(first[:4], "little")


def decode(frame: Buffer) -> Batch | Reply | Cancel:
    """All of a frame after its first four bytes → the message, its pieces views into the frame.

    Raises ValueError (msgspec.DecodeError among them) for a frame that is not whole or lies about its pieces.
    """
    view = memoryview(frame)
    if len(view) < 5:
        raise ValueError("a frame ends inside its head")
    kind, header_length = view[0], int.from_bytes(view[1:5], "little")
    at = 5 + header_length
    if at > len(view):
        raise ValueError("a frame ends inside its header")
    header = view[5:at]
    body = view[at:]
    if kind == BATCH:
        return _decode_batch(_batch_decoder.decode(header), body)
    if kind == REPLY:
        return _decode_reply(_reply_decoder.decode(header), body)
    if kind == CANCEL:
        return _cancel_decoder.decode(header)
    raise ValueError(f"unknown kind of frame {kind}")


def _decode_batch(head: _BatchHead, body: memoryview) -> Batch:
    cuts = _cut(body, (length for column in head.inputs for length in column.pieces))
    columns = [Column(c.name, c.datatype, c.shape, [next(cuts) for _ in c.pieces]) for c in head.inputs]
    _finish(cuts)
    return Batch(head.id, head.batched, head.members, columns, head.parameters)


def _decode_reply(head: _ReplyHead, body: memoryview) -> Reply:
    lengths = (o.data for result in head.results for o in result.outputs or ())
    cuts = _cut(body, lengths)
    results: list[list[Output] | Failure] = []
    for result in head.results:
        if result.failure is not None:
            results.append(Failure(result.failure.reason, result.failure.message, result.failure.error_id))
        else:
            results.append([Output(o.name, o.datatype, o.shape, next(cuts)) for o in result.outputs or ()])
    _finish(cuts)
    return Reply(head.id, results, head.timing)


def _cut(body: memoryview, lengths: Iterable[int]) -> Iterator[memoryview]:
    at = 0
    for length in lengths:
        if length < 0 or at + length > len(body):
            raise ValueError("a frame's pieces run past its end")
        yield body[at : at + length]
        at += length
    if at != len(body):
        raise ValueError("a frame is longer than its pieces")


def _finish(cuts: Iterator[memoryview]) -> None:
    """Run the cutter to its end, where it checks that nothing is left over."""
    for _ in cuts:
        raise ValueError("a frame has pieces that nothing refers to")
