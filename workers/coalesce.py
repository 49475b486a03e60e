"""Stage 2 of batching: what is queued while the device is busy runs as one. Pure.

Stage 1 (the gateway) gathers while its window is full; here batches that have already been sent, perhaps by several
gateways, are merged up to the model's largest execution. A batch stays a batch: a merged one is a `Batch` whose
members are those of the first, then those of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

from workers.messages import Batch, Column


def joinable(one: Batch, other: Batch) -> bool:
    """Whether two batches may share an execution: both batch, with equal columns and parameters."""
    return (
        one.batched
        and other.batched
        and len(one.inputs) == len(other.inputs)
        and one.parameters == other.parameters
        and all(
            a.name == b.name and a.datatype == b.datatype and a.shape == b.shape
            for a, b in zip(one.inputs, other.inputs, strict=True)
        )
    )


def choose(queued: Sequence[Batch], max_rows: int) -> list[int]:
    """Which of the queued batches (by index, ascending) run next together.

    Always the oldest, however large; then, in order, each equal one that still fits into `max_rows`.
    """
    chosen, rows = [0], queued[0].rows
    for index in range(1, len(queued)):
        batch = queued[index]
        if rows >= max_rows:
            break
        more = batch.rows
        if rows + more <= max_rows and joinable(queued[0], batch):
            chosen.append(index)
            rows += more
    return chosen


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of all the members, in order; pieces are not copied. A lone batch is returned as it is."""
    first = batches[0]
    if len(batches) == 1:
        return first
    columns = [
        Column(column.name, column.datatype, column.shape, [p for b in batches for p in b.inputs[at].pieces])
        for at, column in enumerate(first.inputs)
    ]
    return Batch(first.id, first.batched, [m for b in batches for m in b.members], columns, first.parameters)


def pick(batch: Batch, members: Sequence[int]) -> Batch:
    """The same batch with only those members (indices, ascending)."""
    columns = [
        Column(column.name, column.datatype, column.shape, [column.pieces[at] for at in members])
        for column in batch.inputs
    ]
    return Batch(batch.id, batch.batched, [batch.members[at] for at in members], columns, batch.parameters)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Its first and its second half of members; there must be two or more."""
    count = len(batch.members)
    return pick(batch, range(count // 2)), pick(batch, range(count // 2, count))
