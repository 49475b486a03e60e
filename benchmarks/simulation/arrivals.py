"""Who asks, when, for how many rows and by when: traces, the same for every system that is compared on them.

A process gives arrival times at a mean rate. `Mix` says what a request is. Everything is a function of the seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import NamedTuple

from benchmarks.simulation.clock import SECOND


class Request(NamedTuple):
    """`at` and `due` in nanoseconds; `due` 0: no deadline."""

    at: int
    rows: int
    due: int
    tenant: str = "a"
    priority: int = 0


Trace = list[Request]
Process = Callable[[float, float, random.Random], Iterator[float]]
"""(mean rate a second, seconds, chance) → arrival times in seconds, ascending."""


def poisson(rate: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """Independent callers: exponential gaps, CV² = 1."""
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)


def bursty(cv2: float) -> Process:
    """Gaps of two exponential phases with balanced means (H₂): squared coefficient of variation `cv2` > 1."""
    short = (1 + math.sqrt((cv2 - 1) / (cv2 + 1))) / 2

    def process(rate: float, seconds: float, chance: random.Random) -> Iterator[float]:
        at = 0.0
        while True:
            share = short if chance.random() < short else 1 - short
            at += chance.expovariate(2 * share * rate)
            if at >= seconds:
                return
            yield at

    return process


def diurnal(rate: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """Two days in `seconds`: a Poisson rate that swings by 60 % about its mean, thinned from its peak."""
    swing = 0.6
    for at in poisson(rate * (1 + swing), seconds, chance):
        if chance.random() * (1 + swing) < 1 + swing * math.sin(4 * math.pi * at / seconds):
            yield at


PROCESSES: dict[str, Process] = {
    "Poisson": poisson,
    "bursty, CV² 4": bursty(4),
    "bursty, CV² 16": bursty(16),
    "diurnal": diurnal,
}


class Mix(NamedTuple):
    """What one tenant's requests are. `tail`: the exponent of a Pareto law of rows cut off at `largest`; 0: one row.

    `within_s` has a deadline drawn evenly from the two; equal ones make it constant.
    """

    within_s: tuple[float, float]
    tail: float = 0.0
    largest: int = 1
    tenant: str = "a"
    priority: int = 0

    @property
    def mean_rows(self) -> float:
        """E[R] = Σ P(R ≥ k), where P(R ≥ k) = k^-tail up to the largest."""
        return sum(k**-self.tail for k in range(1, self.largest + 1)) if self.tail else 1.0

    def rows(self, chance: random.Random) -> int:
        return min(self.largest, int(chance.paretovariate(self.tail))) if self.tail else 1


def trace(process: Process, rows_rate: float, seconds: float, mix: Mix, seed: int) -> Trace:
    """`rows_rate` rows a second of one tenant, whatever the sizes of its requests."""
    chance = random.Random(seed)
    low, high = mix.within_s
    made = []
    for at in process(rows_rate / mix.mean_rows, seconds, chance):
        when = int(at * SECOND)
        within = int((low + (high - low) * chance.random()) * SECOND) if high else 0
        made.append(Request(when, mix.rows(chance), when + within if within else 0, mix.tenant, mix.priority))
    return made


def together(traces: Iterable[Trace]) -> Trace:
    """Several tenants' requests in the order of their arrival."""
    return list(merge(*traces, key=lambda request: request.at))
