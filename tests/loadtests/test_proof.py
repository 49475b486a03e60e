"""The proof that the budgets notice: what makes a server worse, and what counts as proved."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loadtests.handicapped import HANDICAPS, Surcharge
from loadtests.judge import judge
from loadtests.proof import UNMODIFIED, Run, command, order
from tests.loadtests.seeing import rounds_of
from tests.loadtests.test_judge import FAST, budget


class Clock:
    """CPU time that passes by itself a little whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


def test_a_surcharge_is_a_share_of_what_the_process_takes_by_itself() -> None:
    """Whatever a request costs, and not of what was used before the first."""
    clock = Clock()
    clock.now = 100.0
    surcharge = Surcharge(0.2, clock)
    surcharge.spin()
    begun, own = clock.now, 0.0
    for cost in [300e-6] * 100 + [600e-6] * 100:
        clock.now += cost
        own += cost
        surcharge.spin()
    assert (clock.now - begun) / own == pytest.approx(1.2, rel=0.01)


def test_a_surcharge_holds_nobody_up_for_long() -> None:
    """What is owed after a long pause is paid over many requests."""
    clock = Clock()
    surcharge = Surcharge(0.2, clock)
    surcharge.spin()
    clock.now += 10.0
    before = clock.now
    surcharge.spin()
    assert clock.now - before < 0.003


@pytest.mark.parametrize("handicap", HANDICAPS)
def test_a_handicap_is_put_into_what_the_server_has(handicap: str) -> None:
    """In a process of its own: the names that it replaces are there, and `penstock` goes on."""
    done = subprocess.run([*command(handicap)[:-1], "version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert command(handicap)[0] == sys.executable


def test_worse_servers_are_spread_among_the_runs() -> None:
    """So that they meet the same hours of the machine."""
    servers = order(20, 3)
    assert servers.count(UNMODIFIED) == 20
    assert [servers.count(name) for name in HANDICAPS] == [3, 3]
    assert [name in servers[:10] for name in HANDICAPS] == [True, True]
    assert order(1, 1) == [UNMODIFIED, *HANDICAPS]
    assert order(2, 0) == [UNMODIFIED] * 2


def test_it_is_proved_by_green_where_nothing_changed_and_red_where_it_did() -> None:
    """A run without verdicts proves nothing."""
    kept, breached = (judge(budget(p50=limit), rounds_of(*[FAST] * 5)) for limit in (3.0, 1.0))
    assert Run(UNMODIFIED, kept).as_it_should_be
    assert not Run(UNMODIFIED, breached).as_it_should_be
    assert Run("worker-5ms", breached).as_it_should_be
    assert not Run("worker-5ms", kept).as_it_should_be
    assert not Run(UNMODIFIED, []).as_it_should_be
