"""What a replica's beat says of its last second. Pure: `now` is monotonic nanoseconds."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from workers.messages import Timing

SAMPLES = 16


class Second(NamedTuple):
    """`queue_wait`: mean nanoseconds from arrival to the model; `busy`: share of the time that the model ran;
    `samples`: (rows, seconds) of the latest executions."""

    queue_wait: int
    busy: float
    samples: list[tuple[int, float]]


class Pulse:
    def __init__(self, now: int) -> None:
        self._begun = now
        self._waits = 0
        self._batches = 0
        self._busy = 0
        self._samples: deque[tuple[int, float]] = deque(maxlen=SAMPLES)
        self._last = Timing()

    def observe(self, timing: Timing, held: int) -> None:
        """A batch was answered. `held`: nanoseconds that it waited before it was handed over.

        Batches merged into one execution carry its stages each: replies come in order, so equal stages in a row are
        one execution.
        """
        if not timing.executed_rows:
            return
        self._waits += timing.queue + held
        self._batches += 1
        if not _same(timing, self._last):
            self._busy += timing.compute_input + timing.compute_infer + timing.compute_output
            self._samples.append((timing.executed_rows, timing.compute_infer / 1e9))
        self._last = timing

    def take(self, now: int) -> Second:
        """The time since the last call, which ends here."""
        elapsed = max(1, now - self._begun)
        mean = self._waits // self._batches if self._batches else 0
        second = Second(mean, min(1.0, self._busy / elapsed), list(self._samples))
        self._begun, self._waits, self._batches, self._busy = now, 0, 0, 0
        self._samples.clear()
        return second


def _same(one: Timing, other: Timing) -> bool:
    return (
        one.executed_batches > 1
        and one.compute_infer == other.compute_infer
        and one.compute_input == other.compute_input
        and one.compute_output == other.compute_output
        and one.executed_rows == other.executed_rows
    )
