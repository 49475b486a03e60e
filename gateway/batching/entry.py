"""One request as the batcher sees it."""

from __future__ import annotations

from typing import NamedTuple

from core.datatypes import Buffer
from core.errors import PenstockError
from core.trace import Ahead
from workers.messages import Output, Scalar, Timing


class ColumnKey(NamedTuple):
    """One input: `shape` is that of a row where the model batches, else of the whole tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class BatchKey(NamedTuple):
    """Only requests of equal keys may share a batch (of one model version, since each has a batcher of its own)."""

    columns: tuple[ColumnKey, ...]
    parameters: tuple[tuple[str, Scalar], ...] = ()


class Ride:
    """What its members may know of the batch they are aboard of; `timing` once it is back."""

    __slots__ = ("dispatched", "members", "reason", "rows", "timing")

    def __init__(self, dispatched: int, reason: str, rows: int, members: int) -> None:
        self.dispatched = dispatched
        self.reason = reason
        self.rows = rows
        self.members = members
        self.timing: Timing | None = None


class Entry:
    """A request waiting for, or aboard, a batch. Times are monotonic nanoseconds of this host.

    `pieces` holds the raw bytes of each input in the order of `key.columns`. `priority`: 1 is served first, larger
    numbers later. `trace`: the spans that its execution has to do with, where it is traced.
    The batcher sets `submitted` and `ride`, and calls `answer` or `refuse` exactly once, unless it was cancelled: then
    neither.
    """

    __slots__ = (
        "arrived",
        "deadline",
        "key",
        "pieces",
        "priority",
        "ride",
        "rows",
        "state",
        "submitted",
        "tenant",
        "trace",
    )

    WAITING, ABOARD, OVER, SPOILED = 0, 1, 2, 3
    """SPOILED: it was computed, but its answer could not be told."""

    def __init__(
        self,
        key: BatchKey,
        rows: int,
        pieces: list[Buffer],
        arrived: int,
        deadline: int,
        tenant: str = "",
        priority: int = 0,
    ) -> None:
        self.key = key
        self.rows = rows
        self.pieces = pieces
        self.arrived = arrived
        self.deadline = deadline
        self.tenant = tenant
        self.priority = priority
        self.state = Entry.WAITING
        self.submitted = 0
        self.ride: Ride | None = None
        self.trace: Ahead | None = None

    def answer(self, outputs: list[Output], timing: Timing, waited: int) -> None:
        """The rows of this entry have been computed. `waited`: nanoseconds from arrival to the batch's dispatch."""
        raise NotImplementedError

    def refuse(self, error: PenstockError) -> None:
        """This entry gets `error` in place of outputs."""
        raise NotImplementedError

    def __repr__(self) -> str:
        state = ("waiting", "aboard", "over", "spoiled")[self.state]
        return f"<{type(self).__name__} {self.rows} rows of {self.tenant or 'nobody'}, {state}>"
