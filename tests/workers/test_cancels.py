"""Whose callers have gone, by their gateway's names."""

from __future__ import annotations

import msgspec
import pytest

from tests.workers.deliveries import delivery_of
from tests.workers.samples import batch_of, rows
from workers.cancels import REMEMBERED, Cancels


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


@pytest.mark.parametrize("nonsense", [b"", b"\x80", msgspec.msgpack.encode([[1, "g", []]]), b"\xc1" * 9])
def test_nonsense_is_a_value_error(nonsense: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the log
        Cancels().hear(nonsense)
