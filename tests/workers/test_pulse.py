"""What a beat says of the last second."""

from __future__ import annotations

import pytest

from workers.messages import Timing
from workers.pulse import SAMPLES, Pulse, Second

SECOND = 10**9


def timing(rows: int, infer: int, queue: int = 0, batches: int = 1) -> Timing:
    return Timing(queue, 10, infer, 10, rows, batches)


def test_busy_share_waits_and_samples() -> None:
    """One execution of three batches counts once; each batch's wait counts."""
    pulse = Pulse(0)
    for queue in (100, 200, 300):
        pulse.observe(timing(24, SECOND // 4, queue, 3), held=50)
    pulse.observe(timing(1, SECOND // 8, 400), held=0)
    wait, busy, samples = pulse.take(SECOND)
    assert wait == (150 + 250 + 350 + 400) // 4
    assert busy == pytest.approx(0.375, abs=1e-6)
    assert samples == [(24, 0.25), (1, 0.125)]


def test_equal_executions_of_one_batch_each_are_two() -> None:
    pulse = Pulse(0)
    for _ in range(2):
        pulse.observe(timing(1, SECOND // 4), 0)
    assert len(pulse.take(SECOND).samples) == 2


def test_a_second_starts_with_nothing() -> None:
    pulse = Pulse(0)
    pulse.observe(timing(1, SECOND), 0)
    pulse.take(SECOND)
    assert pulse.take(2 * SECOND) == Second(0, 0.0, [])


def test_the_share_is_never_more_than_all_and_the_samples_are_bounded() -> None:
    """What ran before the second began and ended in it counts here."""
    pulse = Pulse(0)
    for at in range(100):
        pulse.observe(timing(at + 1, SECOND), 0)
    _, busy, samples = pulse.take(SECOND)
    assert busy == 1.0
    assert [rows for rows, _ in samples] == list(range(101 - SAMPLES, 101))


def test_a_batch_that_did_not_run_does_not_count() -> None:
    pulse = Pulse(0)
    pulse.observe(Timing(queue=SECOND), 0)
    assert pulse.take(SECOND) == Second(0, 0.0, [])
