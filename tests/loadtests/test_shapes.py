"""The scenarios as functions of time."""

from __future__ import annotations

import pytest

from loadtests.shapes import ROUNDS, SCENARIOS, WARM_S, ramp, round_of, spike, steady, users


def test_steady_is_all_users_until_it_is_over() -> None:
    """The warm-up comes on top of the time."""
    assert [users(steady, 10, 8, at) for at in (0, WARM_S, WARM_S + 9.9)] == [8, 8, 8]
    assert users(steady, 10, 8, WARM_S + 10) is None


def test_a_ramp_grows_in_a_straight_line() -> None:
    """From an eighth to all."""
    assert [users(ramp, 70, 32, WARM_S + at) for at in (0, 10, 35, 69.9)] == [4, 8, 18, 32]


def test_a_spike_comes_in_each_round() -> None:
    """A quarter, all, a quarter: so the median of the rounds has seen one."""
    counts = [[users(spike, 25, 16, WARM_S + 5 * number + at) for at in (0.1, 2.5, 4.9)] for number in range(ROUNDS)]
    assert counts == [[4, 16, 4]] * ROUNDS


@pytest.mark.parametrize("name", SCENARIOS)
def test_there_is_never_nobody(name: str) -> None:
    """Nor ever more than all, whatever their number."""
    scenario = SCENARIOS[name]
    for most in (1, 3, 20):
        for at in range(0, int(WARM_S + scenario.seconds)):
            assert 1 <= (users(scenario.shape, scenario.seconds, most, at) or 0) <= most


def test_requests_count_for_the_round_that_they_were_sent_in() -> None:
    """Those of the warm-up, and those after the end, for none."""
    assert [round_of(25, at) for at in (0, WARM_S - 0.1)] == [None, None]
    assert [round_of(25, WARM_S + at) for at in (0, 4.99, 5, 24.99, 25)] == [0, 0, 1, 4, None]
