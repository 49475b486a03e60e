"""How many replicas: single decisions, and a simulation of a model under changing load."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest

from core import beats
from core.beats import GatewayBeat, ReplicaBeat, Share
from repository.records import Deployment
from workers.scale import DOWN_AFTER_S, UP_AFTER_S, Load, Scaler, load_of

PLACE = ("m", 1)
FROM_1_TO_8 = Deployment(model="m", replicas=1, max_replicas=8)


def settled(deployment: Deployment, running: int, load: Load, seconds: float) -> int:
    """What a new scaler makes of a load that stays."""
    scaler = Scaler()
    for second in range(int(seconds) + 1):
        running = scaler.replicas(PLACE, deployment, running, load, second)
    return running


@pytest.mark.parametrize(
    ("running", "load", "expected"),
    [
        (0, Load(), 1),
        (1, Load(work=0.6, busy=0.6, ready=1), 1),
        (1, Load(work=0.8, busy=0.9, ready=1), 2),
        (2, Load(work=3.4, busy=1.0, ready=2), 5),
        (1, Load(work=50, busy=1.0, ready=1), 8),
        (1, Load(work=0.1, late=1.0, busy=0.9, ready=1), 2),
        (1, Load(work=0.1, late=1.0, busy=0.2, ready=1), 1),
        (2, Load(work=0.1, late=1.0, busy=0.9, ready=1), 2),
        (9, Load(work=6, busy=0.9, ready=9), 8),
    ],
    ids=[
        "the least",
        "work that fits",
        "work that does not",
        "at once as many as it takes",
        "never above the most",
        "busy, and late all the same",
        "late, but not for want of replicas",
        "not for lateness while one still starts",
        "the most was lowered",
    ],
)
def test_after_two_seconds(running: int, load: Load, expected: int) -> None:
    assert settled(FROM_1_TO_8, running, load, UP_AFTER_S) == expected


def test_one_bad_second_adds_nothing() -> None:
    scaler = Scaler()
    calm, peak = Load(work=0.3, busy=0.3, ready=1), Load(work=5, busy=1, ready=1)
    asked = [scaler.replicas(PLACE, FROM_1_TO_8, 1, load, at) for at, load in enumerate([calm, peak, calm, peak, calm])]
    assert asked == [1] * 5


def test_one_goes_after_a_minute_of_plenty_and_the_next_a_minute_later() -> None:
    scaler, running, went = Scaler(), 4, []
    for second in range(200):
        fewer = scaler.replicas(PLACE, FROM_1_TO_8, running, Load(work=0.4, busy=0.1, ready=running), second)
        went += [second] if fewer < running else []
        running = fewer
    assert [later - earlier for earlier, later in pairwise([0, *went])] == [
        DOWN_AFTER_S,
        DOWN_AFTER_S + 1,
        DOWN_AFTER_S + 1,
    ]
    assert running == 1


def test_fixed_replicas_stay_whatever_the_load() -> None:
    fixed = Deployment(model="m", replicas=2, max_replicas=2)
    assert settled(fixed, 2, Load(work=50, late=9, busy=1, ready=2), 300) == 2
    assert settled(fixed, 2, Load(ready=2), 300) == 2


def test_a_version_without_a_ready_replica_keeps_what_it_has() -> None:
    """Its gateways refuse, so there is no demand to go by: they are being started again."""
    assert settled(FROM_1_TO_8, 3, Load(), DOWN_AFTER_S - 1) == 3


def replica(busy: float = 0.0, wait: int = 0, state: str = beats.READY) -> ReplicaBeat:
    return ReplicaBeat(
        sender="r",
        boot="b",
        sent=0,
        model="m",
        version=1,
        attempt=1,
        state=state,
        busy=busy,
        queue_wait=wait,
        warmup=[(1, 0.004), (32, 0.032)],
    )


def gateway(demand: int, oldest: int = 0) -> GatewayBeat:
    shares = [Share("m", 1, demand=demand, oldest=oldest), Share("other", 1, demand=10**6)]
    return GatewayBeat(sender=f"g{demand}", boot="b", sent=0, revision=1, ready=True, open=shares)


def test_the_load_is_what_gateways_ask_for_at_the_price_of_the_best_batch() -> None:
    load = load_of(PLACE, [replica(0.5), replica(0.7), replica(state=beats.STARTING)], [gateway(300), gateway(700)])
    assert load.work == pytest.approx(1.0)
    assert load.busy == pytest.approx(0.6)
    assert (load.late, load.ready) == (0.0, 2)


def test_the_load_is_late_by_whoever_waits_longest() -> None:
    assert load_of(PLACE, [replica(wait=2 * 10**8)], [gateway(1, oldest=5 * 10**8)]).late == 0.5
    assert load_of(PLACE, [replica(wait=2 * 10**8)], [gateway(1)]).late == 0.2


def test_without_a_warm_up_the_busy_share_stands_for_the_work() -> None:
    bare = ReplicaBeat(sender="r", boot="b", sent=0, model="m", version=1, attempt=1, state=beats.READY, busy=0.9)
    assert load_of(PLACE, [bare], [gateway(500)]).work == pytest.approx(0.9)


# --- a simulation -----------------------------------------------------------------------------------------------------

STARTS_S = 8
"""From the decision to a replica that is warm."""
FIXED_S, ROW_S, BATCH = 0.02, 0.002, 32
CAPACITY = BATCH / (FIXED_S + ROW_S * BATCH)
"""Rows a second of one replica in full batches: 381."""


class Second(NamedTuple):
    replicas: int
    ready: int
    queued: float


def simulated(demand: Callable[[int], float], seconds: int, start: int = 1, seed: int = 1) -> list[Second]:
    """A model whose executions take 20 ms and 2 ms a row, at most 32 rows; Poisson-like demand in rows a second; the
    replicas take the largest batches there are, so they are busy as soon as anything waits."""
    rng, scaler = random.Random(seed), Scaler()
    running, ready_at, queued, seen = start, [0.0] * start, 0.0, []
    for now in range(seconds):
        asked = max(0.0, rng.gauss(demand(now), math.sqrt(demand(now))))
        ready = sum(at <= now for at in ready_at)
        limit = ready * CAPACITY
        served = min(queued + asked, limit)
        queued += asked - served
        # below its limit a replica takes smaller batches, and is busier than the best batches would make it
        busy = 1.0 if queued else min(1.0, served / ready * (ROW_S + FIXED_S / max(1.0, served / ready * 0.04)))
        late = queued / limit
        load = Load(asked / CAPACITY, late, busy, ready)
        running = scaler.replicas(PLACE, FROM_1_TO_8, running, load, now)
        ready_at = sorted(ready_at)[:running] + [now + STARTS_S] * (running - len(ready_at))
        seen.append(Second(running, ready, queued))
    return seen


def changes(seconds: list[Second]) -> int:
    return sum(one.replicas != other.replicas for one, other in pairwise(seconds))


def test_a_step_up_is_answered_within_seconds() -> None:
    """From 100 to 1,500 rows a second: enough replicas are asked for after 3 s, the queue is gone 30 s later."""
    seen = simulated(lambda now: 100 if now < 30 else 1500, 120)
    assert seen[29].replicas == 1
    assert seen[33].replicas >= math.ceil(1500 / CAPACITY)
    assert all(second.queued == 0 for second in seen[70:])


@pytest.mark.parametrize("share", [0.55, 0.65, 0.7, 0.75, 1.3, 1.4, 1.45, 2.8])
def test_a_steady_load_changes_nothing_once_it_is_met(share: float) -> None:
    """Wherever it lies: at and around the shares at which replicas are added, over an hour of noise one is added at
    the most, and none goes."""
    seen = simulated(lambda now: share * CAPACITY, 3600)
    assert changes(seen[120:]) <= 1
    asked = [second.replicas for second in seen[120:]]
    assert asked == sorted(asked)


def test_a_load_that_swings_every_minute_keeps_its_replicas() -> None:
    """What was added for the peaks is not taken away in each valley."""
    seen = simulated(lambda now: (1.9 if now // 30 % 2 else 0.3) * CAPACITY, 1800)
    assert changes(seen[120:]) == 0
    assert seen[-1].replicas >= 3


def test_after_the_peak_replicas_go_one_by_one() -> None:
    """From 5 replicas' worth to a fifth of one: never two at a time, down to the least in some eight minutes."""
    seen = simulated(lambda now: (5 if now < 60 else 0.2) * CAPACITY, 900)
    peak = max(second.replicas for second in seen)
    falling = [second.replicas for second in seen[60:]]
    assert all(earlier - later <= 1 for earlier, later in pairwise(falling))
    assert peak == 8
    assert falling[-1] == 1
    assert all(second.queued == 0 for second in seen[200:])
