"""Open-loop load: constant arrivals, whether answers come or not, each timed from its scheduled send.

A closed loop waits for its answers, and so never meets the queue that it would have met. Here a request that leaves
late because the generator, or every connection, was busy has its wait counted.

The server and the echo take turns of a quarter of a second, and who goes first alternates: whatever else the machine
does meets both alike. Measured on two cores with a load of 6 from others: CPU a request changed by half, its ratio to
the echo's by 3 to 4 % (standard deviation of rounds of 8 s, two runs); with both sides at once by 4 to 13 %.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from loadtests.seen import Outcome, Round, Side, both
from loadtests.shapes import ROUNDS
from loadtests.targets import Target

T = TypeVar("T")
TURN_S = 0.25
WARM_S = 1.0
LEAD_S = 0.002


class Bench(NamedTuple):
    """`cpu`: seconds that the processes behind the target have used so far."""

    target: Target
    cpu: Callable[[], float]


def on_exact_timers(main: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop whose timers are exact to some 60 µs: epoll's, which asyncio takes by itself, and uvloop's are
    rounded up to a millisecond, three times what the echo needs."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main)


async def measure(ours: Bench, echo: Bench, rate: float, seconds: float, late_after: float) -> list[Round]:
    """`rate`: arrivals a second on each side in its turn. `seconds`: of all rounds, both sides together."""
    turns = max(1, round(seconds / ROUNDS / 2 / TURN_S))
    await _turn(ours, Side(late_after), rate, WARM_S)
    await _turn(echo, Side(late_after), rate, WARM_S)
    return [await _round(ours, echo, rate, turns, late_after) for _ in range(ROUNDS)]


async def _round(ours: Bench, echo: Bench, rate: float, turns: int, late_after: float) -> Round:
    seen = both(late_after)
    for turn in range(turns):
        order = ((ours, seen.ours), (echo, seen.echo))
        for bench, side in order if turn % 2 else reversed(order):
            await _turn(bench, side, rate, TURN_S)
    return seen


async def _turn(bench: Bench, side: Side, rate: float, seconds: float) -> None:
    before, answered = bench.cpu(), side.answered
    await offer(bench.target, side, rate, seconds)
    used = bench.cpu() - before
    side.cpu += used
    side.segments.append(used / (side.answered - answered) if side.answered > answered else 0.0)


async def offer(target: Target, side: Side, rate: float, seconds: float) -> None:
    """Constant arrivals; returns when the last is answered."""
    begin = time.perf_counter() + LEAD_S
    calls = []
    for number in range(max(1, round(rate * seconds))):
        due = begin + number / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        calls.append(asyncio.create_task(_timed(target, side, due)))
    await asyncio.gather(*calls)


async def _timed(target: Target, side: Side, due: float) -> None:
    outcome: Outcome = await target.call()
    side.record(time.perf_counter() - due, outcome)
