"""What a measurement says: one row of the result, and how its rounds are taken."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

A = TypeVar("A")
B = TypeVar("B")


class Plan(NamedTuple):
    """How long to measure. A quick run shows that everything works; its numbers are not to be quoted."""

    rounds: int = 5
    seconds: int = 3
    concurrencies: tuple[int, ...] = (1, 32, 128)
    quick: bool = False


QUICK = Plan(rounds=2, seconds=1, quick=True)


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`value`: the median of the rounds, in `unit`. `void`: why it does not count, where it does not."""

    part: str
    what: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    rounds: list[float] = []
    details: dict[str, float] = {}
    void: str = ""

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if self.at_most is not None else ""

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        if self.at_least is not None:
            return not self.void and self.value >= self.at_least
        return None if self.at_most is None else not self.void and self.value <= self.at_most


def alternating(rounds: int, one: Callable[[], A], other: Callable[[], B]) -> list[tuple[A, B]]:
    """A pair for each round; who goes first changes each time, so that a machine's drift favours neither."""
    pairs: list[tuple[A, B]] = []
    for number in range(rounds):
        if number % 2:
            second = other()
            pairs.append((one(), second))
        else:
            pairs.append((one(), other()))
    return pairs


def median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def ratio(ours: float, unit: float) -> float:
    """0 where the unit could not be measured: such a row is void for its bad answers."""
    return ours / unit if unit else 0.0
