"""Rules for signatures and for what goes by them."""

from __future__ import annotations

import pytest

from repository.signature import warmup_sizes


@pytest.mark.parametrize(
    ("max_batch", "asked", "sizes"),
    [
        (0, (), (1,)),
        (0, (4,), (1,)),
        (1, (), (1,)),
        (6, (), (1, 2, 4, 6)),
        (8, (), (1, 2, 4, 8)),
        (8, (7, 3, 3), (3, 7)),
        (8, (16, 2), (2, 8)),
    ],
)
def test_warm_up_sizes(max_batch: int, asked: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """Those asked for, within the maximum; else the powers of two up to it, and itself; 1 where nothing batches."""
    assert warmup_sizes(max_batch, asked) == sizes
