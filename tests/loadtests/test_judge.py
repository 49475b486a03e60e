"""The verdict: what counts as kept, of which round."""

from __future__ import annotations

import math

import pytest

from loadtests.__main__ import told_breaches
from loadtests.budgets import Budget
from loadtests.judge import Verdict, breaches, judge
from loadtests.report import table
from loadtests.seen import Outcome, Round, whole
from tests.loadtests.seeing import round_of, rounds_of

FAST, SLOW = (2.0,) * 100, (20.0,) * 100
TAIL = (2.0,) * 90 + (20.0,) * 10


def budget(**limits: float) -> Budget:
    return Budget("digits", "rest-json", "open-loop", 300.0, limits)


def one(rounds: list[Round], **limits: float) -> Verdict:
    (verdict,) = judge(budget(**limits), rounds)
    return verdict


@pytest.mark.parametrize(("limit", "kept"), [(2.1, True), (1.9, False)])
def test_the_median_is_held_against_the_echo_s(limit: float, kept: bool) -> None:
    """Twice as slow as the echo is two echoes, however long an echo is."""
    verdict = one(rounds_of(*[FAST] * 5), p50=limit)
    assert verdict.measured == pytest.approx(2.0, rel=0.01)
    assert verdict.kept is kept


def test_the_median_is_taken_over_the_whole_run() -> None:
    """Rounds with most of the requests count most."""
    assert one([round_of(FAST * 9), *rounds_of(SLOW, SLOW, SLOW, SLOW)], p50=3).kept


@pytest.mark.parametrize(
    ("rounds", "measured"),
    [
        ((FAST, FAST, FAST, TAIL, TAIL), 2.0),
        ((TAIL, FAST, TAIL, FAST, TAIL), 20.0),
    ],
)
def test_a_high_percentile_is_the_median_of_five(rounds: tuple[tuple[float, ...], ...], measured: float) -> None:
    """Two bad rounds do not breach a p99 or a p95, three do."""
    for name in ("p95", "p99"):
        assert one(rounds_of(*rounds), **{name: 3}).measured == pytest.approx(measured, rel=0.01)


def test_cpu_is_a_request_s_by_the_echo_s() -> None:
    """The median of the turns: a burst of something else's in one of them moves nothing."""
    rounds = [round_of(FAST, cpu_us=(300, 100)) for _ in range(5)]
    rounds[2].ours.segments[0] = 1.0
    assert one(rounds, cpu=3.15).measured == pytest.approx(3.0)
    assert one(rounds, cpu=3.15).kept
    assert not one([round_of(FAST, cpu_us=(360, 100)) for _ in range(5)], cpu=3.15).kept


def test_errors_and_late_answers_are_shares_of_what_was_sent() -> None:
    """An answer of a server that gave up at the deadline is late, and so is one that came after it."""
    rounds = rounds_of(*[FAST] * 5)
    ours = rounds[0].ours
    ours.record(0.001, Outcome.ERROR)
    ours.record(0.001, Outcome.LATE)
    ours.record(0.051, Outcome.OK)
    assert one(rounds, errors=0.002).measured == pytest.approx(1 / 503)
    assert one(rounds, late=0.003).measured == pytest.approx(2 / 503)
    assert not one(rounds, late=0.003).kept


def test_a_refusal_has_no_latency() -> None:
    """Else a server that refuses at once would be the fastest."""
    rounds = rounds_of(*[()] * 5)
    rounds[0].ours.record(0.0001, Outcome.ERROR)
    verdict = one(rounds, p50=3)
    assert (verdict.measured, verdict.kept) == (math.inf, False)


def test_without_a_unit_there_is_no_verdict_but_a_breach() -> None:
    """An echo that fails, or nothing sent at all, keeps no budget, and is said once."""
    rounds = rounds_of(*[FAST] * 5)
    rounds[1].echo.record(0.001, Outcome.ERROR)
    verdicts = judge(budget(p50=3, late=0.1), rounds)
    assert [verdict.kept for verdict in verdicts] == [False, False]
    assert breaches(verdicts) == [
        "digits rest-json, open-loop at 300 arrivals/s: no unit: the echo failed 1 of 501 requests"
    ]
    assert not one([round_of((), FAST) for _ in range(5)], errors=0.1).kept


def test_a_breach_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and on stderr the budget, what was seen and what is allowed."""
    verdicts = judge(budget(p50=1.5, errors=0.0), rounds_of(*[FAST] * 5))
    assert told_breaches(verdicts) == 1
    assert capsys.readouterr().err == (
        "breached: digits rest-json, open-loop at 300 arrivals/s: p50 2 echoes, allowed 1.5 echoes\n"
    )
    assert told_breaches(verdicts[1:]) == 0
    assert told_breaches([]) == 1


def test_the_table_shows_each_limit_and_what_was_measured() -> None:
    """One line a limit, the rounds beside the figure that counts."""
    _, first, second = table(judge(budget(p50=1.5, errors=0.01), rounds_of(*[FAST] * 5))).splitlines()
    assert first.split()[-9:] == ["p50", "1.5", "echoes", "2", "echoes", "2", "–", "2", "BREACHED"]
    assert second.split()[-10:] == ["errors", "1", "%", "0", "%", "0", "–", "0", "%", "kept"]


def test_rounds_add_up() -> None:
    """The whole run's histogram is that of all rounds."""
    total = whole(rounds_of(FAST, SLOW))
    assert (total.ours.answered, total.echo.answered) == (200, 200)
    assert total.ours.at(0.99) == pytest.approx(0.02, rel=0.01)
    assert total.ours.told()["p50_ms"] == pytest.approx(2.0, rel=0.01)
