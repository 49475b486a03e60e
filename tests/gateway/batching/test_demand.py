"""Demand is a rate, however often it is asked for."""

from __future__ import annotations

from gateway.batching.batcher import SECOND, Demand


def test_demand_is_rows_a_second() -> None:
    """Of the time that passed, be it one second or four."""
    demand, start = Demand(), 10 * SECOND
    demand.of(0, start)
    assert demand.of(100, start + SECOND) == 100
    assert demand.of(500, start + 5 * SECOND) == 100


def test_asking_more_often_changes_nothing() -> None:
    """A beat out of turn must not look like a lull."""
    demand, start = Demand(), 10 * SECOND
    demand.of(0, start)
    assert demand.of(1000, start + SECOND) == 1000
    assert [demand.of(1000 + 10 * at, start + SECOND + at * SECOND // 100) for at in range(1, 50)] == [1000] * 49
    assert demand.of(2000, start + 2 * SECOND) == 1000
