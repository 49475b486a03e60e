"""What to do about a batch as time passes, and how its answers come together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transports import amqp_flight as flights
from gateway.transports.amqp_flight import SECOND, Flight, Patience, RetryBudget
from gateway.transports.base import Sample
from tests.workers.samples import batch_of, rows
from workers.messages import Failure, Reply, Timing

NOW = 1_000 * SECOND
LIMIT, USUAL = 2 * SECOND, SECOND // 10


def flight(members: int = 3, budget_s: float = 10.0) -> Flight:
    batch = batch_of(*[rows(at) for at in range(members)], number=5)
    made = Flight(batch, lambda reply: None, 77, 0, NOW, NOW + round(budget_s * SECOND))
    made.put(NOW)
    return made


def failure(text: str) -> Failure:
    return Failure("model_failed", text)


# --- advice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "after_s", "blocked", "advice"),
    [
        ("posted", 0.1, False, flights.KEEP),
        ("posted", 5.0, False, flights.KEEP),
        ("posted", 0.1, True, flights.KEEP),
        ("posted", 0.3, True, flights.BLOCKED),
        ("confirmed", 1.9, False, flights.KEEP),
        ("confirmed", 2.1, False, flights.AGAIN),
        ("confirmed", 9.95, False, flights.KEEP),
        ("confirmed", 10.5, False, flights.KEEP),
        ("confirmed", 11.1, False, flights.EXPIRED),
        ("confirmed", 5.0, True, flights.AGAIN),
        ("again", 5.0, False, flights.KEEP),
        ("split", 5.0, False, flights.KEEP),
        ("waiting", 0.1, False, flights.POST),
        ("waiting", 3.1, False, flights.LOST),
        ("waiting", 11.0, False, flights.EXPIRED),
    ],
)
def test_what_time_makes_necessary(state: str, after_s: float, blocked: bool, advice: str) -> None:
    """Deadline in 10 s, silence of 2 s too long, an answer usually within 0.1 s."""
    made = flight()
    made.confirmed = state in ("confirmed", "again", "split")
    made.again = state == "again"
    made.split = state == "split"
    if state == "waiting":
        made.wait(NOW)
    assert made.advice(NOW + round(after_s * SECOND), LIMIT, USUAL, blocked) == advice


def test_a_wait_ends_with_the_deadline() -> None:
    """Without the grace that an answer on its way has: nothing is on its way."""
    made = flight(budget_s=1.0)
    made.wait(NOW)
    assert made.advice(NOW + SECOND + 1, LIMIT, USUAL, False) == flights.EXPIRED


def test_hanging_batches_are_counted_apart() -> None:
    made = flight()
    made.confirmed = True
    assert not made.overdue(NOW + LIMIT, LIMIT)
    assert made.overdue(NOW + LIMIT + 1, LIMIT)


# --- answers ------------------------------------------------------------------------------------------------------


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=6))
def test_parts_come_together_in_any_order(order: list[int], again: list[int]) -> None:
    """Whatever the order, and however often one comes: the first answer of each member, in its place."""
    made = flight(6)
    for at, member in enumerate(order):
        assert made.missing == 6 - at
        made.part(member, failure(f"{member} first"), NOW)
        for double in again:
            if double in order[: at + 1]:
                made.part(double, failure("a second time"), NOW)
    assert made.missing == 0
    assert made.reply(Timing(), NOW) == Reply(5, [failure(f"{at} first") for at in range(6)], Timing())


@given(st.sets(st.integers(0, 3)))
def test_a_whole_answer_fills_what_is_missing(before: set[int]) -> None:
    made = flight(4)
    for member in before:
        made.part(member, failure("alone"), NOW)
    made.whole([failure("together")] * 4)
    texts = [result.message for result in made.reply(Timing(), NOW).results if isinstance(result, Failure)]
    assert texts == ["alone" if at in before else "together" for at in range(4)]
    assert made.missing == 0


def test_an_answer_without_outputs_is_one() -> None:
    """An empty list is a result: a model may have no outputs that were asked for."""
    made = flight(1)
    made.part(0, [], NOW)
    made.whole([failure("late")])
    assert made.reply(Timing(), NOW).results == [[]]


def test_time_lost_on_the_way_counts_as_queued() -> None:
    """So that it is not taken for the overhead of every way: queue and computing stay apart."""
    made = flight()
    made.again = True
    made.whole([failure("x")] * 3)
    timing = made.reply(Timing(1000, 1, 2, 3, 3), NOW + 5 * SECOND).timing
    assert (timing.queue, timing.compute_infer) == (5 * SECOND - 6, 2)


def test_members_of_the_whole_are_found_in_a_part() -> None:
    made = Flight(batch_of(rows(1), rows(2)), lambda reply: None, 1, 3, NOW, NOW)
    assert made.own([0, 3, 4, 5]) == [0, 1]


# --- patience and budget ------------------------------------------------------------------------------------------


def test_patience_is_three_times_p99_and_a_second() -> None:
    patience = Patience()
    assert patience.limit == SECOND
    for took in [10] * 127 + [10**9]:
        patience.observe(took)
    assert patience.limit == 3 * 10 + SECOND
    patience.observe(10**9)
    assert patience.limit == 4 * SECOND


def test_a_slow_warm_up_makes_patient() -> None:
    """Before there is any answer, and where all so far were of small batches."""
    patience = Patience([Sample(1, 0.1), Sample(32, 2.0)])
    assert patience.limit == 7 * SECOND
    patience.observe(SECOND // 1000)
    assert patience.limit == 7 * SECOND


@given(st.lists(st.booleans(), max_size=600))
def test_repeats_are_a_tenth_of_the_first_tries(events: list[bool]) -> None:
    """And a few that are there at first."""
    budget, first, repeated = RetryBudget(), 0, 0
    for is_first in events:
        if is_first:
            budget.earn()
            first += 1
        else:
            repeated += budget.spend()
        assert repeated <= RetryBudget.AT_FIRST + RetryBudget.SHARE * first + 1e-6


def test_a_long_calm_does_not_save_up_a_storm() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(1000)) == RetryBudget.MOST
