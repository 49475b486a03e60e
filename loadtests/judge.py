"""Whether a budget was kept: pure, from what was seen of the server and of the echo beside it.

A limit in echoes holds the server's figure by the echo's of the same run. The median latency and a request's CPU are
steady enough to be held to it as they stand, over all rounds; p95 and p99 are not: each is taken round by round, and
the median of the five ratios counts. Errors and late answers are shares of all that was sent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from loadtests.budgets import CPU, SHARES, Budget
from loadtests.seen import Round, Side, whole

ECHO_MAY_FAIL = 0.001
"""Share of the echo's requests: where more went wrong there is no unit, and no verdict but a breach."""


class Verdict(NamedTuple):
    """`rounds`: what each of them alone would have said. `void`: why nothing was measured, '' where it was."""

    budget: Budget
    name: str
    limit: float
    measured: float
    rounds: list[float]
    void: str = ""

    @property
    def kept(self) -> bool:
        return not self.void and self.measured <= self.limit

    @property
    def breach(self) -> str:
        """The budget's name, what was allowed and what was seen."""
        if self.void:
            return f"{self.budget}: {self.void}"
        return f"{self.budget}: {self.name} {amount(self.name, self.measured)}, allowed {amount(self.name, self.limit)}"

    def told(self) -> dict[str, Any]:
        return {
            "budget": str(self.budget),
            "name": self.name,
            "limit": self.limit,
            "measured": finite(self.measured),
            "rounds": [finite(each) for each in self.rounds],
            "kept": self.kept,
            "void": self.void,
        }


def judge(budget: Budget, rounds: list[Round]) -> list[Verdict]:
    """One verdict for each limit of the budget."""
    total = whole(rounds)
    void = _void(total)
    return [
        Verdict(budget, name, limit, _measured(name, total, rounds), [_figure(name, each) for each in rounds], void)
        for name, limit in budget.limits.items()
    ]


def judged(seen: Iterable[tuple[Budget, list[Round]]]) -> list[Verdict]:
    """The verdicts of a whole job."""
    return [verdict for budget, rounds in seen for verdict in judge(budget, rounds)]


def breaches(verdicts: Iterable[Verdict]) -> list[str]:
    """Each said once."""
    return list(dict.fromkeys(verdict.breach for verdict in verdicts if not verdict.kept))


def amount(name: str, value: float) -> str:
    """With its unit: `1.72 echoes`, `0.1 %`."""
    return f"{100 * value:.3g} %" if name in SHARES else f"{value:.3g} echoes"


def finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return round(value, 5) if math.isfinite(value) else None


def _void(total: Round) -> str:
    if not total.echo.sent or total.echo.errors > ECHO_MAY_FAIL * total.echo.sent:
        return f"no unit: the echo failed {total.echo.errors} of {total.echo.sent} requests"
    return "" if total.ours.sent else "no request was sent"


def _measured(name: str, total: Round, rounds: list[Round]) -> float:
    if name in ("p95", "p99"):
        return statistics.median(_figure(name, each) for each in rounds)
    return _figure(name, total)


def _figure(name: str, seen: Round) -> float:
    if name in SHARES:
        return _share(name, seen.ours)
    if name == CPU:
        return _cpu(seen)
    share = int(name.removeprefix("p")) / 100
    return _ratio(seen.ours.at(share), seen.echo.at(share))


def _share(name: str, side: Side) -> float:
    return (side.errors if name == "errors" else side.late) / side.sent if side.sent else math.inf


def _cpu(seen: Round) -> float:
    """The median, over turns, of a request's CPU by the echo's of the turn beside: what else the machine does moves
    both, and a burst of it only some pairs. (The ratio of two medians moves: they may be of different moments.)"""
    pairs = [_ratio(ours, echo) for ours, echo in zip(seen.ours.segments, seen.echo.segments, strict=True)]
    return statistics.median(pairs) if pairs else math.inf


def _ratio(ours: float, echo: float) -> float:
    """Infinite where either has no answer."""
    return ours / echo if ours and echo else math.inf
