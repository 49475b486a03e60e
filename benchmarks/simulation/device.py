"""What runs a batch: τ₀ + α·b seconds for b rows, one batch at a time, never interrupted."""

from __future__ import annotations

import random

import msgspec

from benchmarks.simulation.clock import SECOND
from gateway.transports.base import Sample


class Device(msgspec.Struct, frozen=True):
    """`jitter`: each run takes up to that share longer, evenly distributed. Times in seconds."""

    fixed_s: float
    row_s: float
    max_batch: int
    jitter: float = 0.0

    def seconds(self, rows: int) -> float:
        """The mean."""
        return (self.fixed_s + self.row_s * rows) * (1 + self.jitter / 2)

    def time(self, rows: int, chance: random.Random) -> int:
        """One run, in nanoseconds."""
        stretch = 1 + self.jitter * chance.random() if self.jitter else 1.0
        return round((self.fixed_s + self.row_s * rows) * stretch * SECOND)

    @property
    def full_s(self) -> float:
        return self.seconds(self.max_batch)

    @property
    def limit(self) -> float:
        """Rows a second in full batches: no rule does more."""
        return self.max_batch / self.full_s

    @property
    def samples(self) -> list[Sample]:
        """The warm-up: one run of each power of two up to the maximum."""
        sizes = sorted({min(1 << k, self.max_batch) for k in range((self.max_batch - 1).bit_length() + 1)})
        return [Sample(rows, self.seconds(rows)) for rows in sizes]


class Exponential(Device, frozen=True):
    """The mean is the same, the law is exponential: what the textbook's M/M/c asks for."""

    def time(self, rows: int, chance: random.Random) -> int:
        return round(chance.expovariate(1 / self.seconds(rows)) * SECOND)
