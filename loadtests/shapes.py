"""The scenarios: how many users there are when, as pure functions of time, and what happens to the server meanwhile.

Each lasts five rounds of equal length, after a few seconds in which connections open and nothing counts. A spike comes
once a round, so that each round has seen one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

ROUNDS = 5
WARM_S = 3.0
"""Not counted: users come, connections open."""

Shape = Callable[[float], float]
"""The share of all users that are there, by how far the scenario is, 0 to 1."""


def steady(at: float) -> float:
    return 1.0


def ramp(at: float) -> float:
    """From an eighth to all, in a straight line."""
    return min(1.0, 0.125 + 0.875 * at)


def spike(at: float) -> float:
    """In each round a quarter, then for its middle half all, then a quarter again."""
    in_round = at * ROUNDS % 1.0
    return 1.0 if 0.25 <= in_round < 0.75 else 0.25


class Scenario(NamedTuple):
    """`disturbance`: what is done to the server at `disturbed_at` (a share of the time), in its production shape."""

    shape: Shape
    seconds: float
    disturbance: str = ""
    disturbed_at: float = 0.3

    @property
    def distributed(self) -> bool:
        return bool(self.disturbance)


OPEN_LOOP = "open-loop"
UPDATE, KILL = "a new version is pushed", "a replica is killed"
SCENARIOS = {
    OPEN_LOOP: Scenario(steady, 30),
    "steady": Scenario(steady, 25),
    "spike": Scenario(spike, 25),
    "ramp": Scenario(ramp, 60),
    "soak": Scenario(steady, 600),
    "rolling-update": Scenario(steady, 60, UPDATE),
    "replica-kill": Scenario(steady, 60, KILL),
}
IN_CI = (OPEN_LOOP, "steady", "spike")


def users(shape: Shape, seconds: float, most: int, since_start: float) -> int | None:
    """How many there are `since_start` seconds after the beginning, of `most`; None once it is over."""
    if since_start >= WARM_S + seconds:
        return None
    return max(1, math.ceil(most * shape(progress(seconds, since_start))))


def progress(seconds: float, since_start: float) -> float:
    """How far a scenario is, 0 to 1; 0 while it warms."""
    return min(1.0, max(0.0, (since_start - WARM_S) / seconds))


def round_of(seconds: float, since_start: float) -> int | None:
    """Which round a request that was sent then counts for; None: for none."""
    if not WARM_S <= since_start < WARM_S + seconds:
        return None
    return int(progress(seconds, since_start) * ROUNDS)
