"""How long a batch takes: what admission and forming believe of the worker.

Times are kept by size class, the powers of two up to the maximum: a ring of observed ones each. Three things are read
off them, each for its purpose:
- `service`, the 99th percentile: what one batch, the caller's own, may take.
- `typical`, the same without rare stalls: what the batches ahead take. That each of several stalls is not to be
  expected; but a mean in its place lets in so many that an overload ends with one in ten late (simulated).
- `floor`, the fastest run seen: a deadline below that is hopeless, one above it worth trying on an idle worker.
Between the classes a curve is linear; a class that was never run is filled in by the affine fit t₀ + a·b through
those that were. The transport's warm-up samples seed the rings.

An estimate that is too high refuses the work that would correct it, so none may stand on old evidence for ever:
a class that has not run lately (`STALE` batches) is believed to be no slower than the next larger class, nor than its
own rows in batches of the class below.

Reads are O(1); curves are drawn again every `PERIOD` batches, and at once when a time exceeds its estimate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from gateway.transports.base import Sample

RING = 128
"""Times kept for a class: the nearest-rank p99 of a full ring leaves out the largest one."""
STALL = 1.5
PERIOD = 16
STALE = 4 * PERIOD


class Curve:
    """Time in nanoseconds by rows: never falling, linear between its points, flat beyond the last."""

    __slots__ = ("sizes", "times")

    def __init__(self, sizes: list[int], times: list[int]) -> None:
        self.sizes = sizes
        self.times = times

    def at(self, rows: int) -> int:
        sizes, times = self.sizes, self.times
        if rows >= sizes[-1]:
            return times[-1]
        k = (rows - 1).bit_length()
        high = sizes[k]
        if rows == high:
            return times[k]
        low, below = sizes[k - 1], times[k - 1]
        return below + (times[k] - below) * (rows - low) // (high - low)

    def most(self, budget: int) -> int:
        """The most rows whose time fits in `budget`; 0 where not even one does."""
        sizes, times = self.sizes, self.times
        if times[-1] <= budget:
            return sizes[-1]
        k = 0
        while times[k] <= budget:
            k += 1
        if k == 0:
            return 0
        low, below = sizes[k - 1], times[k - 1]
        return low + (budget - below) * (sizes[k] - low) // (times[k] - below)


class Estimate:
    """Times in nanoseconds, sizes in rows, for batches of 1 to `max_batch` rows; 0 while nothing is known."""

    def __init__(self, max_batch: int, samples: Iterable[Sample] = ()) -> None:
        largest = max(1, max_batch)
        self.sizes = sizes = [min(1 << k, largest) for k in range((largest - 1).bit_length() + 1)]
        self._rings: list[deque[int]] = [deque(maxlen=RING) for _ in sizes]
        self._overheads: deque[int] = deque(maxlen=RING)
        self._hastes: deque[int] = deque(maxlen=RING)
        self._seen = [0] * len(sizes)
        """The batch count at which each class last ran."""
        self._tails = [0] * len(sizes)
        self._steady = [0] * len(sizes)
        self._fastest = [0] * len(sizes)
        self._count = self._drawn = 0
        self.overhead = 0
        """p99 of what a batch costs beyond the worker's queue and computing: the way there and back."""
        self.haste = 0
        """By how much batches end sooner than `typical`, the median."""
        for sample in samples:
            self._rings[self._class(sample.rows)].append(max(1, round(sample.seconds * 1e9)))
        self._draw()

    def service(self, rows: int) -> int:
        """p99 of the time to run `rows` rows."""
        return self._service.at(rows)

    def typical(self, rows: int) -> int:
        """What `rows` rows take where nothing stalls."""
        return self._typical.at(rows)

    def floor(self, rows: int) -> int:
        """The fastest time seen for a batch of the class of `rows`, at most `max_batch`; never more than `service`."""
        fastest = self._fastest[(rows - 1).bit_length()]
        service = self._service.at(rows)
        return fastest if fastest < service else service

    def most(self, budget: int) -> int:
        """The most rows whose p99 fits in `budget`; 0 where not even one does."""
        return self._service.most(budget)

    def observe(self, rows: int, computed: int, overhead: int = 0) -> None:
        """A batch of `rows` took the worker `computed`, and its way there and back `overhead`."""
        k = self._class(rows)
        self._rings[k].append(computed)
        self._overheads.append(overhead)
        self._hastes.append(self._typical.at(rows) - computed)
        self._count += 1
        self._seen[k] = self._count
        if self._count % PERIOD == 0 or computed > self._service.times[k]:
            self._draw()

    def _class(self, rows: int) -> int:
        return min((max(rows, 1) - 1).bit_length(), len(self.sizes) - 1)

    def _draw(self) -> None:
        for k, ring in enumerate(self._rings):
            if ring and self._seen[k] >= self._drawn:
                ranked = sorted(ring)
                self._fastest[k] = ranked[0]
                self._tails[k] = p99(ranked)
                self._steady[k] = steady(ranked)
            elif k and not ring:
                self._fastest[k] = self._fastest[k - 1]
        self._drawn = self._count
        self._service = self._curve(self._tails)
        self._typical = self._curve(self._steady)
        self.overhead = p99(sorted(self._overheads))
        self.haste = max(0, percentile(sorted(self._hastes), 50))
        self.longest = self._service.times[-1]
        """p99 of the largest batch."""
        self.full = self._typical.times[-1]
        """What the largest batch takes where nothing stalls."""
        self.pace = min(time / size for time, size in zip(self._typical.times, self.sizes, strict=True))
        """Nanoseconds a row, at the size of batch that is best for throughput."""

    def _curve(self, seen: list[int]) -> Curve:
        """Through the classes that ran; never falling; where evidence is stale, bounded by that of the neighbours."""
        sizes = self.sizes
        fixed, slope = affine([(b, t) for b, t, ring in zip(sizes, seen, self._rings, strict=True) if ring])
        times = [t if ring else round(fixed + slope * b) for b, t, ring in zip(sizes, seen, self._rings, strict=True)]
        stale = [self._count - last > STALE for last in self._seen]
        for k in range(len(times) - 2, -1, -1):
            if stale[k]:
                times[k] = min(times[k], times[k + 1])
        for k in range(1, len(times)):
            if stale[k]:
                times[k] = min(times[k], times[k - 1] * sizes[k] // sizes[k - 1])
            times[k] = max(times[k], times[k - 1])
        return Curve(sizes, times)

    def __repr__(self) -> str:
        points = ", ".join(f"{b}: {t / 1e6:.3g}" for b, t in zip(self.sizes, self._service.times, strict=True))
        return f"<Estimate p99 in ms by rows: {points}; overhead {self.overhead / 1e6:.3g}>"


def percentile(ranked: Sequence[int], percent: int) -> int:
    """The nearest-rank percentile of sorted times; 0 of none."""
    return ranked[-(-percent * len(ranked) // 100) - 1] if ranked else 0


def p99(ranked: Sequence[int]) -> int:
    """The nearest-rank 99th percentile of sorted times; 0 of none."""
    return percentile(ranked, 99)


def steady(ranked: Sequence[int]) -> int:
    """p99 of sorted times; but p90 where stalls are rare and long: where p99 is beyond `STALL` times p90."""
    high = p99(ranked)
    usual = percentile(ranked, 90)
    return high if high <= STALL * usual else usual


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
