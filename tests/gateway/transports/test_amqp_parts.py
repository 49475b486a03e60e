"""A batch larger than one message may be goes as several, and comes back as one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.transports.amqp_parts import Join, cut, fits, size_of
from workers.messages import Batch, Column, Failure, Member, Reply, Timing, encode, frame_length

LIMIT = 10_000


def batch_with(sizes: list[int]) -> Batch:
    columns = [Column(name, "UINT8", (1,), [bytes(size) for size in sizes]) for name in ("a", "b")]
    return Batch(9, True, [Member(1, at) for at in range(len(sizes))], columns, {"p": 1})


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=20))
def test_no_part_is_larger_than_a_message_unless_a_member_is(sizes: list[int]) -> None:
    batch = batch_with(sizes)
    parts = cut(batch, LIMIT)
    members = [member for _, part in parts for member in part.members]
    assert members == batch.members
    assert [first for first, _ in parts] == [part.members[0].deadline for _, part in parts]
    assert sum(size_of(part) for _, part in parts) == size_of(batch)
    for _, part in parts:
        assert len(part.members) == 1 or frame_length(encode(part)[0]) <= LIMIT
        assert (part.id, part.batched, part.parameters) == (9, True, {"p": 1})


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=20))
def test_what_fits_is_one_message(sizes: list[int]) -> None:
    batch = batch_with(sizes)
    if fits(batch, LIMIT):
        assert frame_length(encode(batch)[0]) <= LIMIT
        assert len(cut(batch, LIMIT)) == 1


@given(st.data())
def test_the_parts_replies_become_one(data: st.DataObject) -> None:
    """In member order, whatever the order of the parts; the timing is one that an execution had."""
    batch = batch_with(data.draw(st.lists(st.integers(0, 6000), min_size=1, max_size=12)))
    whole: list[Reply] = []
    join = Join(batch, whole.append)
    parts = data.draw(st.permutations(cut(batch, LIMIT)))
    for at, (first, part) in enumerate(parts):
        assert not whole, at
        failures = [Failure("model_failed", str(member.deadline)) for member in part.members]
        join.part(first)(Reply(part.id, list(failures), Timing(executed_rows=3, compute_infer=at)))
    (reply,) = whole
    assert reply.id == 9
    assert [result.message for result in reply.results if isinstance(result, Failure)] == [
        str(at) for at in range(len(batch.members))
    ]
    assert reply.timing.executed_rows == 3
