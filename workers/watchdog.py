"""A model that hangs is noticed, and its process ended: only that frees what it holds.

    silent for longer than the floor and than 3 × the slowest execution + 1 s ─┐
    nobody whose rows it has can use an answer any more, + 1 s ────────────────┴─► it hangs

Both must hold: a large request with a long deadline may take far longer than any before it, and a caller with a tiny
deadline must not be able to have a process ended. The rule is one for a child process (`workers/child_link.py` kills
it) and for a model on a thread of a replica's own process (`watch`: no thread can be stopped from outside, so the
replica goes as a whole; the broker hands what it held to others, and Ray Serve starts another one).

The event loop must turn for that: a model that hangs with Python's lock held stops beats and heartbeats as well, by
which the broker and Ray Serve find it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import structlog

from workers.messages import Member
from workers.worker import Execution, Worker

log = structlog.get_logger(__name__)

HUNG = 70
"""The exit code of a replica whose model hangs: EX_SOFTWARE of sysexits.h."""
LOOK_S = 0.25
FAREWELL_S = 1.0
LATE = 2_000_000_000
"""Nanoseconds between two looks by which this process itself was stopped, or starved: what it did not see counts for
nothing."""
MILLISECOND, SECOND = 1_000_000, 1_000_000_000

Blame = Callable[[Sequence[Member]], Awaitable[None]]


def hung(silent_since: int, latest: int, slowest: int, floor: int, now: int) -> bool:
    """Whether what runs hangs. All in nanoseconds; `latest`: until when anybody could use its answer, `slowest`: the
    longest service seen, `floor`: before which nothing hangs."""
    return now - silent_since > max(floor, 3 * slowest + SECOND) and now > latest + SECOND


def latest_use(members: Iterable[Member], begun: int, budget: int) -> int:
    """Until when any of them can use an answer. Who names no deadline counts as having the model's own `budget`."""
    return max(member.deadline or begun + budget for member in members)


class Watchdog:
    """Looks at a worker now and then. `floor`, `budget` (of who names no deadline): nanoseconds."""

    def __init__(self, floor: int, budget: int, now: int) -> None:
        self._floor = floor
        self._budget = budget
        self._looked = self._awake = now

    def hangs(self, execution: Execution | None, slowest: int, now: int) -> bool:
        """`execution`: what runs now, `slowest`: nanoseconds of the longest one lately."""
        if now - self._looked > LATE:
            self._awake = now
        self._looked = now
        if execution is None:
            return False
        latest = latest_use(execution.members, execution.started, self._budget)
        return hung(max(execution.started, self._awake), latest, slowest, self._floor, now)


async def watch(worker: Worker, patience_s: float, blame: Blame, end: Callable[[int], object]) -> None:
    """Look at a worker as long as its model answers. When it hangs: log it, have `blame` told whose rows it has (for as
    long as a farewell may take), have `end` called with HUNG."""
    version = worker.version
    dog = Watchdog(int(patience_s * SECOND), version.default_deadline_ms * MILLISECOND, time.monotonic_ns())
    while True:
        await asyncio.sleep(LOOK_S)
        execution, now = worker.execution, time.monotonic_ns()
        if dog.hangs(execution, worker.slowest, now) and execution is not None:
            break
    silent_s = round((now - execution.started) / SECOND, 1)
    log.error("model hangs, its replica ends", model=version.key, silent_s=silent_s, members=len(execution.members))
    with suppress(Exception):  # whatever becomes of it, the process ends
        async with asyncio.timeout(FAREWELL_S):
            await blame(execution.members)
    end(HUNG)
