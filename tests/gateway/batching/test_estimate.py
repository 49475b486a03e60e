"""What the estimate believes, and how soon it changes its mind."""

from __future__ import annotations

import random

import pytest

from gateway.batching.estimate import PERIOD, RING, STALE, Estimate, affine, p99, steady
from gateway.transports.base import Sample

MS = 1_000_000


def seeded(max_batch: int = 32, fixed: float = 2, row: float = 1) -> Estimate:
    sizes = [1 << k for k in range(6) if 1 << k <= max_batch]
    return Estimate(max_batch, [Sample(b, (fixed + row * b) / 1e3) for b in sizes])


def test_warm_up_samples_seed_every_size_by_an_affine_curve() -> None:
    """Linear between the powers of two, and flat beyond the maximum."""
    estimate = seeded()
    assert [estimate.service(b) for b in (1, 2, 3, 5, 17, 31, 32, 99)] == [
        ms * MS for ms in (3, 4, 5, 7, 19, 33, 34, 34)
    ]
    assert estimate.pace == pytest.approx(34 * MS / 32)
    twenty = seeded(20)
    assert [twenty.service(b) for b in (16, 18, 20, 21, 32, 99)] == [ms * MS for ms in (18, 20, 22, 22, 22, 22)]


def test_sizes_that_never_ran_are_filled_in_by_the_fit() -> None:
    """Two sizes tell the line; one alone is taken as proportional, the careful end; none is 0: let everything in."""
    two = Estimate(32, [Sample(1, 0.003), Sample(8, 0.010)])
    assert [round(two.service(b) / MS) for b in (2, 4, 16, 32)] == [4, 6, 18, 34]
    one = Estimate(32, [Sample(1, 0.003)])
    assert [round(one.service(b) / MS) for b in (1, 8, 32)] == [3, 24, 96]
    assert Estimate(32).service(32) == 0
    assert Estimate(32).most(0) == 32


def test_most_inverts_service() -> None:
    """The most rows that fit in a budget, for random curves: one row more would not."""
    chance = random.Random(5)
    for _ in range(300):
        estimate = seeded(chance.choice([1, 2, 5, 8, 32]), chance.uniform(0, 5), chance.uniform(0.01, 3))
        budget = round(chance.uniform(0, 60) * MS)
        most, largest = estimate.most(budget), estimate.sizes[-1]
        assert most == 0 or estimate.service(most) <= budget
        assert most == largest or estimate.service(most + 1) > budget


def test_service_never_falls_with_size() -> None:
    """A slow time of a small batch raises the larger ones too."""
    estimate = seeded()
    estimate.observe(4, 20 * MS)
    times = [estimate.service(b) for b in range(1, 33)]
    assert times == sorted(times)
    assert estimate.service(4) == 20 * MS


def test_a_slow_batch_counts_at_once_and_a_fast_one_lowers_the_floor() -> None:
    """Up without delay; down as the ring forgets."""
    estimate = seeded()
    estimate.observe(32, 50 * MS)
    assert estimate.service(32) == 50 * MS
    for _ in range(RING + PERIOD):
        estimate.observe(32, 30 * MS)
    assert estimate.service(32) == 30 * MS
    assert estimate.floor(32) == 30 * MS


def test_the_floor_is_never_above_the_estimate() -> None:
    """A class is as fast as its fastest run, but that may have had more rows than are asked about."""
    estimate = seeded()
    assert [estimate.floor(b) / MS for b in (1, 16, 17, 20, 32)] == [3, 18, 19, 22, 34]


def test_one_accident_in_a_full_ring_is_beyond_the_99th_percentile() -> None:
    """p99 of 128 times leaves out one; of fewer it is the largest."""
    estimate = seeded(1)
    for _ in range(RING):
        estimate.observe(1, 3 * MS)
    estimate.observe(1, 5000 * MS)
    for _ in range(PERIOD):
        estimate.observe(1, 3 * MS)
    assert estimate.service(1) == 3 * MS
    assert p99([1, 2, 900]) == 900


def test_a_class_that_does_not_run_cannot_keep_its_accident() -> None:
    """Once its evidence is stale, no time is believed beyond its rows in the class below, nor the class above."""
    estimate = seeded(8, fixed=0, row=1)
    estimate.observe(8, 5000 * MS)
    assert estimate.service(8) == 5000 * MS
    for _ in range(STALE + 2 * PERIOD):
        estimate.observe(1, 1 * MS)
    assert estimate.service(8) <= 8 * MS
    estimate.observe(1, 5000 * MS)
    for _ in range(STALE + 2 * PERIOD):
        estimate.observe(8, 8 * MS)
    assert estimate.service(1) <= 8 * MS


def test_rare_stalls_stand_in_p99_and_not_in_what_the_batches_ahead_take() -> None:
    """Steady times keep their p99; where p99 is a stall, p90 stands for it."""
    assert steady([10] * 60 + [12] * 40) == 12
    assert steady([10] * 97 + [100] * 3) == 10
    assert steady([]) == 0


def test_the_way_there_and_back_is_kept_apart() -> None:
    """`overhead` is the p99 of what the batches cost beyond the worker's own times."""
    estimate = seeded()
    for number in range(100):
        estimate.observe(1, 3 * MS, number)
    assert 90 <= estimate.overhead <= 99


def test_the_fit_never_slopes_down() -> None:
    """More rows never take less time, whatever two times say."""
    assert affine([(1, 10), (2, 8)]) == (9, 0)
    assert affine([]) == (0, 0)
