"""How many messages a replica holds: enough for two executions, no more."""

from __future__ import annotations

import pytest

from workers.prefetch import FEWEST, HELD_BYTES, MOST, PERIOD_NS, Prefetch, rule

MIB = 1 << 20


@pytest.mark.parametrize(
    ("max_batch", "smallest", "largest", "count"),
    [
        (32, 1, 100, 64),
        (32, 4, 100, 16),
        (32, 5, 100, 13),
        (32, 32, 100, 2),
        (32, 1000, 100, FEWEST),
        (0, 1, 100, 2),
        (1, 1, 100, 2),
        (4096, 1, 100, MOST),
        (32, 1, 16 * MIB, 8),
        (32, 1, HELD_BYTES, FEWEST),
        (32, 0, 0, 64),
    ],
)
def test_the_rule(max_batch: int, smallest: int, largest: int, count: int) -> None:
    assert rule(max_batch, smallest, largest) == count


def test_until_a_message_was_seen_they_count_as_single_rows() -> None:
    prefetch = Prefetch(32)
    assert (prefetch.count, prefetch.decide(0)) == (64, 64)


def test_it_moves_only_by_a_factor_of_two() -> None:
    """A change costs two round trips."""
    prefetch = Prefetch(32)
    for rows, count in [(1, 64), (2, 32), (3, 32), (4, 16)]:
        fresh = Prefetch(32)
        fresh.count = prefetch.count
        fresh.saw(rows, 100)
        assert fresh.decide(0) == count
        prefetch = fresh


def test_a_single_small_message_counts_for_a_period_or_two() -> None:
    """And not for ever."""
    prefetch, counts = Prefetch(32), []
    for second in range(20):
        prefetch.saw(1 if second == 3 else 32, 100)
        counts.append(prefetch.decide(PERIOD_NS + second * PERIOD_NS // 5))
    assert counts[:3] == [2, 2, 2]
    assert counts[3:8] == [64] * 5
    assert counts[-1] == 2


def test_without_messages_nothing_changes() -> None:
    prefetch = Prefetch(32)
    prefetch.saw(16, 100)
    assert [prefetch.decide(at * PERIOD_NS) for at in range(1, 9)] == [4] * 8
