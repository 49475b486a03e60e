"""Virtual time: a heap of events, and a clock that jumps from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

SECOND = 1_000_000_000
MS = 1_000_000


class Clock:
    """`now` is in nanoseconds. Events of one instant happen in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = 0

    def at(self, when: int, call: Callable[..., None], *arguments: Any) -> None:
        """Have `call` called at `when`, or now if that has passed."""
        self._numbers += 1
        heappush(self._events, (max(when, self.now), self._numbers, call, arguments))

    def after(self, delay: int, call: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, call, *arguments)

    def run(self, until: int | None = None) -> None:
        """Let time pass until nothing is left to happen, or to `until`."""
        events = self._events
        while events and (until is None or events[0][0] <= until):
            self.now, _, call, arguments = heappop(events)
            call(*arguments)

    def __repr__(self) -> str:
        return f"<Clock at {self.now / SECOND:.6f} s, {len(self._events)} events ahead>"
