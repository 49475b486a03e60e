"""How long a batch takes: what admission and forming believe of the worker.

Service time is kept by size class, the powers of two up to the maximum: a ring of observed times each, of which the
99th percentile counts. Between the classes the estimate is linear; a class that was never run is filled in by the
affine fit t₀ + a·b through those that were. The transport's warm-up samples seed the rings.

An estimate that is too high refuses the work that would correct it, so none may stand on old evidence for ever:
a class that has not run lately (`STALE` batches) is believed to be no slower than the next larger class that has,
nor than its own rows in batches of the class below. `floor` is the other end: nothing is faster than the fastest
run seen, so a deadline below that is hopeless, and one above it is worth trying on an idle worker.

Reads are O(1); the fit is computed again every `PERIOD` batches, and at once when a time exceeds its estimate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from gateway.transports.base import Sample

RING = 128
"""Times kept for a class: the nearest-rank p99 of a full ring leaves out the largest one."""
PERIOD = 16
STALE = 4 * PERIOD


class Estimate:
    """Times in nanoseconds, sizes in rows, for batches of 1 to `max_batch` rows."""

    __slots__ = (
        "_count",
        "_fastest",
        "_fitted",
        "_overheads",
        "_rings",
        "_seen",
        "_sizes",
        "_tail",
        "_times",
        "longest",
        "overhead",
        "pace",
    )

    def __init__(self, max_batch: int, samples: Iterable[Sample] = ()) -> None:
        largest = max(1, max_batch)
        self._sizes = [min(1 << k, largest) for k in range((largest - 1).bit_length() + 1)]
        self._rings: list[deque[int]] = [deque(maxlen=RING) for _ in self._sizes]
        self._seen = [0] * len(self._sizes)
        """The batch count at which each class last ran."""
        self._tail = [0] * len(self._sizes)
        """p99 of each ring."""
        self._times = [0] * len(self._sizes)
        self._fastest = [0] * len(self._sizes)
        self._overheads: deque[int] = deque(maxlen=RING)
        self._count = self._fitted = 0
        self.overhead = 0
        """p99 of what a batch costs beyond the worker's queue and computing: the way there and back."""
        self.longest = 0
        """p99 of the largest batch."""
        self.pace = 0.0
        """Nanoseconds a row at the size of batch that is best for throughput."""
        for sample in samples:
            self._ring(sample.rows).append(max(1, round(sample.seconds * 1e9)))
        self._fit()

    def service(self, rows: int) -> int:
        """p99 of the time to run `rows` rows; 0 while nothing is known."""
        k = (rows - 1).bit_length()
        if k >= len(self._times):
            return self._times[-1]
        high = self._sizes[k]
        if rows == high or k == 0:
            return self._times[k]
        low = self._sizes[k - 1]
        below = self._times[k - 1]
        return below + (self._times[k] - below) * (rows - low) // (high - low)

    def floor(self, rows: int) -> int:
        """The fastest time seen for a batch of the class of `rows`, at most `max_batch`."""
        return self._fastest[(rows - 1).bit_length()]

    def most(self, budget: int) -> int:
        """The most rows whose service time fits in `budget`; 0 where not even one does."""
        times, sizes = self._times, self._sizes
        if times[-1] <= budget:
            return sizes[-1]
        k = 0
        while times[k] <= budget:
            k += 1
        if k == 0:
            return 0
        low, below = sizes[k - 1], times[k - 1]
        return low + (budget - below) * (sizes[k] - low) // (times[k] - below)

    def observe(self, rows: int, computed: int, overhead: int = 0) -> None:
        """A batch of `rows` took the worker `computed`, and its way there and back `overhead`."""
        k = min((rows - 1).bit_length(), len(self._rings) - 1)
        self._rings[k].append(computed)
        self._overheads.append(overhead)
        self._count += 1
        self._seen[k] = self._count
        if self._count % PERIOD == 0 or computed > self._times[k]:
            self._fit()

    def _ring(self, rows: int) -> deque[int]:
        return self._rings[min((max(rows, 1) - 1).bit_length(), len(self._rings) - 1)]

    def _fit(self) -> None:
        self._tail = [
            p99(ring) if seen >= self._fitted else tail
            for ring, seen, tail in zip(self._rings, self._seen, self._tail, strict=True)
        ]
        self._fitted = self._count
        known = [(size, self._tail[k]) for k, size in enumerate(self._sizes) if self._rings[k]]
        fixed, slope = affine(known)
        times = [self._tail[k] if self._rings[k] else round(fixed + slope * b) for k, b in enumerate(self._sizes)]
        self._times = self._sane(times)
        self._fastest = self._floors()
        self.longest = self._times[-1]
        self.overhead = p99(self._overheads)
        self.pace = min(time / size for time, size in zip(self._times, self._sizes, strict=True))

    def _sane(self, times: list[int]) -> list[int]:
        """Never falling with size; and where the evidence is stale, bounded by that of the neighbours."""
        stale = [self._count - seen > STALE for seen in self._seen]
        for k in range(len(times) - 2, -1, -1):
            if stale[k]:
                times[k] = min(times[k], times[k + 1])
        for k in range(1, len(times)):
            if stale[k]:
                times[k] = min(times[k], times[k - 1] * self._sizes[k] // self._sizes[k - 1])
            times[k] = max(times[k], times[k - 1])
        return times

    def _floors(self) -> list[int]:
        floors: list[int] = []
        for k, ring in enumerate(self._rings):
            below = floors[-1] if floors else 0
            floors.append(min(min(ring), self._times[k]) if ring else below)
        return floors

    def __repr__(self) -> str:
        points = ", ".join(f"{b}: {t / 1e6:.3g}" for b, t in zip(self._sizes, self._times, strict=True))
        return f"<Estimate ms by rows: {points}; overhead {self.overhead / 1e6:.3g}>"


def p99(times: Sequence[int]) -> int:
    """The nearest-rank 99th percentile; 0 of nothing."""
    if not times:
        return 0
    ranked = sorted(times)
    return ranked[-(-99 * len(ranked) // 100) - 1]


def affine(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """t₀, a ≥ 0 of the least-squares line t₀ + a·rows; one point alone counts as time proportional to rows."""
    if not points:
        return 0.0, 0.0
    if len(points) == 1:
        return 0.0, points[0][1] / points[0][0]
    mean_b = sum(b for b, _ in points) / len(points)
    mean_t = sum(t for _, t in points) / len(points)
    spread = sum((b - mean_b) ** 2 for b, _ in points)
    slope = max(0.0, sum((b - mean_b) * (t - mean_t) for b, t in points) / spread)
    return max(0.0, mean_t - slope * mean_b), slope
