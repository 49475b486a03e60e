"""What a load saw: latencies in an HDR histogram, errors, late answers, CPU; of both sides, round by round."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from hdrh.histogram import HdrHistogram

LONGEST_S = 60.0
MICRO = 1e6


class Outcome(Enum):
    """`LATE`: the server gave up at the deadline (504, DEADLINE_EXCEEDED)."""

    OK = "ok"
    LATE = "late"
    ERROR = "error"


class Side:
    """One of the two, the server or the echo, in one round. `late_after`: seconds."""

    def __init__(self, late_after: float) -> None:
        self.late_after = late_after
        self.latencies = HdrHistogram(1, int(LONGEST_S * MICRO), 3)
        self.answered = self.late = self.errors = 0
        self.cpu = 0.0
        """Seconds that its processes took."""
        self.segments: list[float] = []
        """CPU seconds a request, of each turn that it had the load for itself; 0 where none was answered."""

    def __repr__(self) -> str:
        return f"<Side {self.answered} answered, {self.late} late, {self.errors} errors, p50 {self.at(0.5):.2g} s>"

    @property
    def sent(self) -> int:
        return self.answered + self.errors

    def record(self, seconds: float, outcome: Outcome) -> None:
        """Only answers have a latency: a refusal is fast, and would make the percentiles look well."""
        if outcome is Outcome.ERROR:
            self.errors += 1
            return
        self.answered += 1
        self.late += outcome is Outcome.LATE or seconds > self.late_after
        self.latencies.record_value(min(int(seconds * MICRO) + 1, int(LONGEST_S * MICRO)))

    def at(self, share: float) -> float:
        """The latency in seconds that this share of the answers did not exceed; 0 of none."""
        return float(self.latencies.get_value_at_percentile(100 * share) / MICRO) if self.answered else 0.0

    def add(self, other: Side) -> None:
        self.latencies.add(other.latencies)
        self.answered += other.answered
        self.late += other.late
        self.errors += other.errors
        self.cpu += other.cpu
        self.segments += other.segments

    def told(self) -> dict[str, Any]:
        """As JSON has it: milliseconds, microseconds of CPU, and the histogram itself (HDR's own encoding)."""
        return {
            "answered": self.answered,
            "errors": self.errors,
            "late": self.late,
            "p50_ms": round(1e3 * self.at(0.5), 3),
            "p95_ms": round(1e3 * self.at(0.95), 3),
            "p99_ms": round(1e3 * self.at(0.99), 3),
            "cpu_us": round(MICRO * self.cpu / max(1, self.answered), 1),
            "cpu_us_by_turn": [round(MICRO * each, 1) for each in self.segments],
            "histogram": self.latencies.encode().decode(),
        }


class Round(NamedTuple):
    ours: Side
    echo: Side


def both(late_after: float) -> Round:
    return Round(Side(late_after), Side(late_after))


def whole(rounds: list[Round]) -> Round:
    """All rounds as one."""
    total = both(rounds[0].ours.late_after)
    for each in rounds:
        total.ours.add(each.ours)
        total.echo.add(each.echo)
    return total
