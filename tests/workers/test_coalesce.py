"""Which queued batches run together, and that no member is lost or mixed up on the way."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.samples import batch_of, rows
from workers.coalesce import choose, halves, join, joinable, pick
from workers.messages import Batch, Column, Member

KEYS = st.sampled_from(["a", "b"])
QUEUES = st.lists(st.tuples(KEYS, st.lists(st.integers(1, 4), min_size=1, max_size=4)), min_size=1, max_size=8)


def queue(drawn: list[tuple[str, list[int]]]) -> list[Batch]:
    return [
        Batch(at, True, [Member(n) for n in counts], [Column(key, "INT8", (), [bytes([at]) * n for n in counts])])
        for at, (key, counts) in enumerate(drawn)
    ]


@given(QUEUES, st.integers(1, 12))
def test_the_choice_starts_with_the_oldest_and_fits(drawn: list[tuple[str, list[int]]], limit: int) -> None:
    """The oldest always goes; others only with an equal key, in order, and within the limit."""
    batches = queue(drawn)
    chosen = choose(batches, limit)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert all(joinable(batches[0], batches[at]) for at in chosen)
    assert len(chosen) == 1 or sum(batches[at].rows for at in chosen) <= limit


@given(QUEUES, st.integers(1, 12))
def test_nothing_that_would_still_fit_is_left(drawn: list[tuple[str, list[int]]], limit: int) -> None:
    batches = queue(drawn)
    chosen = choose(batches, limit)
    room = limit - sum(batches[at].rows for at in chosen)
    left = [b for at, b in enumerate(batches) if at not in chosen and joinable(batches[0], b)]
    assert all(batch.rows > room for batch in left)


@given(QUEUES)
def test_joining_keeps_every_member_and_its_piece(drawn: list[tuple[str, list[int]]]) -> None:
    batches = [batch for batch in queue(drawn) if batch.inputs[0].name == drawn[0][0]]
    whole = join(batches)
    assert whole.members == [member for batch in batches for member in batch.members]
    assert whole.inputs[0].pieces == [piece for batch in batches for piece in batch.inputs[0].pieces]
    assert join(batches[:1]) is batches[0]


@given(st.lists(st.integers(1, 3), min_size=2, max_size=9))
def test_halves_are_the_whole(counts: list[int]) -> None:
    batch = queue([("a", counts)])[0]
    first, second = halves(batch)
    assert first.members
    assert second.members
    assert join([first, second]) == batch


@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=9))
def test_picked_members_bring_their_own_pieces(data: st.DataObject, counts: list[int]) -> None:
    batch = queue([("a", counts)])[0]
    keep = sorted(data.draw(st.sets(st.sampled_from(range(len(counts))))))
    picked = pick(batch, keep)
    assert [member.rows for member in picked.members] == [counts[at] for at in keep]
    assert [len(piece) for piece in picked.inputs[0].pieces] == [counts[at] for at in keep]


def test_only_equal_keys_are_joinable() -> None:
    """Same names, datatypes, shapes of a row and parameters; unbatched ones never."""
    batch = batch_of(rows(1))
    assert joinable(batch, batch_of(rows(2, 3), number=2))
    column = batch.inputs[0]
    for other in (
        msgspec.structs.replace(batch, parameters={"k": 1}),
        msgspec.structs.replace(batch, batched=False),
        msgspec.structs.replace(batch, inputs=[column, column]),
        msgspec.structs.replace(batch, inputs=[Column("z", column.datatype, column.shape, column.pieces)]),
        msgspec.structs.replace(batch, inputs=[Column("x", "INT32", column.shape, column.pieces)]),
        msgspec.structs.replace(batch, inputs=[Column("x", "FP32", (2, 2), column.pieces)]),
    ):
        assert not joinable(batch, other)
        assert not joinable(other, batch)
