"""How many messages a replica holds at a time. Pure: `now` is monotonic nanoseconds.

A broker counts messages, a device rows: with too few messages a replica cannot merge the small ones of many gateways
into full batches (8 gateways sending 4 rows each: 655 rows/s with a prefetch of 2, 2,832 with 32); with too many it
keeps work that another could do.
"""

from __future__ import annotations

FEWEST, MOST = 2, 1024
HELD_BYTES = 128 << 20
"""What one replica may hold of payloads before they have run."""
PERIOD_NS = 5_000_000_000


def rule(max_batch: int, smallest: int, largest: int) -> int:
    """Messages for two executions: ⌈2 × max batch / the smallest message's rows⌉, no more than the largest message's
    bytes allow. `max_batch` 0: the model does not batch."""
    rows = max(1, max_batch)
    count = -(-2 * rows // max(1, smallest))
    return max(FEWEST, min(count, MOST, HELD_BYTES // max(1, largest)))


class Prefetch:
    """`count` is what holds now. It follows the messages of the last one to two periods, and moves only where it is
    off by a factor of two: a change costs two round trips. Until any was seen, messages count as single rows."""

    def __init__(self, max_batch: int) -> None:
        self.count = rule(max_batch, 1, 1)
        self._max_batch = max_batch
        self._begun = 0
        self._now: tuple[int, int] | None = None
        self._before: tuple[int, int] | None = None

    def saw(self, rows: int, size: int) -> None:
        """A message of so many rows and bytes came."""
        smallest, largest = self._now or (rows, size)
        self._now = (min(smallest, rows), max(largest, size))

    def decide(self, now: int) -> int:
        """The count from now on."""
        seen = [extremes for extremes in (self._before, self._now) if extremes is not None]
        if seen:
            right = rule(self._max_batch, min(s for s, _ in seen), max(b for _, b in seen))
            if right >= 2 * self.count or 2 * right <= self.count:
                self.count = right
        if now - self._begun >= PERIOD_NS:
            self._begun, self._before, self._now = now, self._now, None
        return self.count
