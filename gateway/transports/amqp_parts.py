"""A batch that is larger than one message may be → several that are not, and their replies → one. Pure."""

from __future__ import annotations

from collections.abc import Callable

from core.datatypes import Buffer
from gateway.transports.base import Done
from workers.messages import Batch, Column, Failure, Output, Reply, Timing

HEADER_BYTES = 4096
"""Kept of a message for all that is no tensor; and for each member and column, `EACH_BYTES`."""
EACH_BYTES = 64


def size_of(batch: Batch) -> int:
    """Bytes of its tensors."""
    return sum(sum(map(_length, column.pieces)) for column in batch.inputs)


def fits(batch: Batch, limit: int) -> bool:
    """Whether a message of `limit` bytes can carry it: an estimate on the safe side, but for wild parameters."""
    return size_of(batch) + _overhead(batch) <= limit


def cut(batch: Batch, limit: int) -> list[tuple[int, Batch]]:
    """(index of the first member, batch of it and those after it): each as large as fits, a single member at least."""
    room = limit - _overhead(batch)
    sizes = [sum(_length(column.pieces[at]) for column in batch.inputs) for at in range(len(batch.members))]
    starts, filled = [0], 0
    for at, size in enumerate(sizes):
        if filled + size > room and at > starts[-1]:
            starts.append(at)
            filled = 0
        filled += size
    ends = [*starts[1:], len(sizes)]
    return [(start, _slice(batch, start, end)) for start, end in zip(starts, ends, strict=True)]


class Join:
    """Collects the replies to the parts of `batch`; its own goes to `done` with the last of them."""

    def __init__(self, batch: Batch, done: Done) -> None:
        self._batch = batch
        self._done = done
        self._results: list[list[Output] | Failure | None] = [None] * len(batch.members)
        self._missing = len(batch.members)
        self._timing = Timing()

    def part(self, first: int) -> Callable[[Reply], None]:
        """What to call with the reply to the part that begins with member `first`."""

        def done(reply: Reply) -> None:
            self._results[first : first + len(reply.results)] = reply.results
            self._missing -= len(reply.results)
            if reply.timing.executed_rows:
                self._timing = reply.timing
            if not self._missing:
                results = [result for result in self._results if result is not None]
                self._done(Reply(self._batch.id, results, self._timing))

        return done


def _overhead(batch: Batch) -> int:
    return HEADER_BYTES + EACH_BYTES * len(batch.members) * (1 + len(batch.inputs))


def _slice(batch: Batch, start: int, end: int) -> Batch:
    columns = [Column(c.name, c.datatype, c.shape, c.pieces[start:end]) for c in batch.inputs]
    return Batch(batch.id, batch.batched, batch.members[start:end], columns, batch.parameters, batch.context)


def _length(piece: Buffer) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)
