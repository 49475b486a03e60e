"""Whose callers have gone, by their gateway's names."""

from __future__ import annotations

import msgspec
import pytest

from tests.workers.deliveries import delivery_of
from tests.workers.samples import batch_of, rows
from workers.cancels import MOST_ENTRIES, MOST_MEMBERS, REMEMBERED, Cancels


def body(*cancels: tuple[str, int, list[int]]) -> bytes:
    return msgspec.msgpack.encode(cancels)


def test_they_find_their_batch_by_gateway_and_number() -> None:
    """Members that it does not have are left out."""
    cancels = Cancels()
    ours = delivery_of(batch_of(rows(1), rows(2), number=5))
    assert cancels.enter(ours) == []
    found = cancels.hear(body(("g", 5, [1, 7, -1]), ("h", 5, [0]), ("g", 6, [0])))
    assert found == [(ours, [1])]
    cancels.leave(ours)
    assert list(cancels) == []
    assert cancels.hear(body(("g", 5, [0]))) == []


def test_a_suspect_is_named_by_its_place_in_the_batch() -> None:
    """Members of one batch here at the same time are told apart."""
    cancels = Cancels()
    second, third = (
        delivery_of(batch_of(rows(1), number=5), suspect=True, attempt=1, member=member) for member in (1, 2)
    )
    cancels.enter(second)
    cancels.enter(third)
    assert cancels.hear(body(("g", 5, [2]))) == [(second, []), (third, [0])]


def test_one_that_comes_too_early_waits_for_its_batch() -> None:
    cancels = Cancels()
    cancels.hear(body(("g", 5, [0])))
    assert cancels.enter(delivery_of(batch_of(rows(1), number=5))) == [0]
    assert cancels.enter(delivery_of(batch_of(rows(1), number=5))) == []


def test_no_more_are_kept_than_a_bound() -> None:
    """Most are for other replicas' batches."""
    cancels = Cancels()
    cancels.hear(body(*(("g", at, [0]) for at in range(REMEMBERED + 1))))
    assert cancels.enter(delivery_of(batch_of(rows(1), number=0))) == []
    assert cancels.enter(delivery_of(batch_of(rows(1), number=REMEMBERED))) == [0]


def test_nor_more_members_than_a_bound() -> None:
    """The latest are kept: what is cancelled and has not come yet comes soon."""
    cancels = Cancels()
    many = list(range(MOST_MEMBERS // 4))
    for at in range(100):
        cancels.hear(body(("g", at, many)))
    assert cancels.remembered <= MOST_MEMBERS
    assert cancels.enter(delivery_of(batch_of(rows(1), number=99))) == [0]
    assert cancels.enter(delivery_of(batch_of(rows(1), number=50))) == []
    assert cancels.remembered < MOST_MEMBERS
    for _ in range(100):
        cancels.hear(body(("g", 7, many)))
    assert cancels.enter(delivery_of(batch_of(rows(1), number=98))) == [0], "one that is told again counts once"


@pytest.mark.parametrize(
    "flood",
    [("g", 5, [0] * (MOST_MEMBERS + 1)), ("g" * 1000, 5, [0])],
    ids=["members", "a name"],
)
def test_more_than_a_batch_has_is_a_value_error(flood: tuple[str, int, list[int]]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the log
        Cancels().hear(body(flood))
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the log
        Cancels().hear(body(*[("g", at, [0]) for at in range(MOST_ENTRIES + 1)]))


@pytest.mark.parametrize("nonsense", [b"", b"\x80", msgspec.msgpack.encode([[1, "g", []]]), b"\xc1" * 9])
def test_nonsense_is_a_value_error(nonsense: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the log
        Cancels().hear(nonsense)
