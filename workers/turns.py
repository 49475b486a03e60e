"""Who runs beside whom. Pure.

Batches run together, as many as there are. A suspect (a member of a batch that a process died with) runs with nothing
beside it: whether it was the one shows only then, and its neighbours are not killed with it. Where both wait they take
turns: a suspect, then the batches that waited meanwhile, then the next suspect.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    def __init__(self) -> None:
        self._batches: deque[T] = deque()
        self._suspects: deque[T] = deque()
        self._running = 0
        self._alone = False
        self._owed = False

    def __repr__(self) -> str:
        waiting = f"{len(self._batches)} batches and {len(self._suspects)} suspects wait"
        return f"<Turns, {waiting}, {self._running} running{' alone' if self._alone else ''}>"

    def add(self, item: T, suspect: bool) -> None:
        (self._suspects if suspect else self._batches).append(item)

    def next(self) -> list[T]:
        """What is to run now, beside what runs already."""
        if self._alone:
            return []
        if not self._suspects or self._owed:
            return self._release()
        if self._running:
            return []
        self._alone, self._running = True, 1
        return [self._suspects.popleft()]

    def done(self) -> None:
        """One of those that ran has been answered."""
        self._running -= 1
        if self._alone:
            self._alone, self._owed = False, bool(self._batches)

    def _release(self) -> list[T]:
        ready = list(self._batches)
        self._batches.clear()
        self._running += len(ready)
        self._owed = False
        return ready
