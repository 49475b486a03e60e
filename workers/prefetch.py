"""How many messages a replica holds at a time. Pure: `now` is monotonic nanoseconds.

A broker counts messages, a device rows: with too few messages a replica cannot merge the small ones of many gateways
into full batches (8 gateways sending 4 rows each: 655 rows/s with a prefetch of 2, 2,832 with 32); with too many it
keeps work that another could do: a broker deals messages out in turn, to busy replicas too, while another is idle.
What counts is the mean message: by the smallest of them a single row in seconds would deal everything out at once
(simulated, four replicas and two gateways, deadlines of 2.5 batches: docs/batching.md).
"""

from __future__ import annotations

from typing import NamedTuple

FEWEST, MOST = 2, 1024
HELD_BYTES = 128 << 20
"""What one replica may hold of payloads before they have run."""
PERIOD_NS = 5_000_000_000


def rule(max_batch: int, mean: float, largest: int) -> int:
    """Messages for two executions: twice as many as the mean one (in rows) fits into one, no more than the largest
    message's bytes allow. `max_batch` 0: the model does not batch."""
    count = 2 * int(max(1, max_batch) / max(1.0, mean))
    return max(FEWEST, min(count, MOST, HELD_BYTES // max(1, largest)))


class Seen(NamedTuple):
    """The messages of one period."""

    messages: int = 0
    rows: int = 0
    largest: int = 0


class Prefetch:
    """`count` is what holds now. It follows the messages of the last one to two periods, and moves only where it is
    off by a factor of two: a change costs two round trips. Until any was seen, messages count as single rows."""

    def __init__(self, max_batch: int) -> None:
        self.count = rule(max_batch, 1, 1)
        self._max_batch = max_batch
        self._begun = 0
        self._now = self._before = Seen()

    def saw(self, rows: int, size: int) -> None:
        """A message of so many rows and bytes came."""
        messages, total, largest = self._now
        self._now = Seen(messages + 1, total + rows, max(largest, size))

    def decide(self, now: int) -> int:
        """The count from now on."""
        messages, rows, largest = self._before
        messages, rows = messages + self._now.messages, rows + self._now.rows
        if messages:
            right = rule(self._max_batch, rows / messages, max(largest, self._now.largest))
            if right >= 2 * self.count or 2 * right <= self.count:
                self.count = right
        if now - self._begun >= PERIOD_NS:
            self._begun, self._before, self._now = now, self._now, Seen()
        return self.count
