"""The house in which the other rules live: one queue, N replicas, and no message between them.

That favours the rules: Penstock's gateways share the replicas unseen, hear of a finished batch only when its reply has
come back, and send the next one before. Here a rule sees all that waits, and which replica is idle, at once. The way
from the caller and back to it takes as long as Penstock's.
"""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple, Protocol

from benchmarks.simulation.arrivals import Request, Trace
from benchmarks.simulation.clock import SECOND, Clock
from benchmarks.simulation.device import Device
from benchmarks.simulation.ledger import Ledger


class Take(NamedTuple):
    """`batches` run in this order as replicas become idle; `shed` never do; `wake`: ask again then (0: no need)."""

    batches: list[list[Request]]
    shed: list[Request]
    wake: int = 0


class Rule(Protocol):
    """Holds what waits. Asked at each arrival, each completion and each `wake`."""

    def add(self, request: Request, now: int) -> None: ...

    def take(self, idle: int, now: int) -> Take:
        """`idle`: replicas that have nothing to run."""

    def ran(self, batch: list[Request], started: int, now: int) -> None:
        """An execution has ended."""


class Central:
    def __init__(self, clock: Clock, device: Device, replicas: int, hop: int, rule: Rule, ledger: Ledger, seed: int):
        self._clock, self._device, self._rule, self._ledger, self._hop = clock, device, rule, ledger, hop
        self._idle = replicas
        self._ready: deque[list[Request]] = deque()
        self._chance = random.Random(f"device {seed}")
        self._alarm = 0

    def arrive(self, request: Request) -> None:
        self._ledger.sent(request)
        self._clock.after(self._hop, self._reach, request)

    def _reach(self, request: Request) -> None:
        self._rule.add(request, self._clock.now)
        self._serve()

    def _serve(self) -> None:
        now = self._clock.now
        while True:
            taken = self._rule.take(self._idle, now)
            for request in taken.shed:
                self._ledger.late(request)
            self._ready.extend(taken.batches)
            while self._idle and self._ready:
                self._start(self._ready.popleft())
            if not taken.batches:
                break
        if taken.wake and (self._alarm <= now or taken.wake < self._alarm):
            self._alarm = taken.wake
            self._clock.at(taken.wake, self._ring)

    def _ring(self) -> None:
        self._serve()

    def _start(self, batch: list[Request]) -> None:
        self._idle -= 1
        rows = sum(request.rows for request in batch)
        self._ledger.ran(rows)
        self._clock.after(self._device.time(rows, self._chance), self._finish, batch, self._clock.now)

    def _finish(self, batch: list[Request], started: int) -> None:
        now = self._clock.now
        self._idle += 1
        for request in batch:
            self._ledger.answered(request, now + self._hop)
        self._rule.ran(batch, started, now)
        self._serve()


def simulate(trace: Trace, device: Device, rule: Rule, replicas: int = 1, hop_s: float = 0.0, seed: int = 0,
             warm_s: float = 0.0, until_s: float = 1e9) -> Ledger:  # fmt: skip
    """Run a rule on a trace to the last answer; count those that arrive from `warm_s` to `until_s`."""
    clock, ledger = Clock(), Ledger(int(warm_s * SECOND), int(until_s * SECOND))
    central = Central(clock, device, replicas, int(hop_s * SECOND), rule, ledger, seed)
    feed(clock, trace, central)
    clock.run()
    return ledger


class Door(Protocol):
    def arrive(self, request: Request) -> None: ...


def feed(clock: Clock, trace: Trace, door: Door) -> None:
    """Let each request arrive in its time."""

    def arrive(index: int) -> None:
        if index + 1 < len(trace):
            clock.at(trace[index + 1].at, arrive, index + 1)
        door.arrive(trace[index])

    if trace:
        clock.at(trace[0].at, arrive, 0)
