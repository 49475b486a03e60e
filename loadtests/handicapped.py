"""A server that is worse by a known amount, to see whether the budgets notice: the product itself has no such switch.

    python -m loadtests.handicapped worker-5ms up        every execution of a model takes 5 ms longer
    python -m loadtests.handicapped gateway-cpu-20 up    every request costs the server's process a fifth more CPU

The words behind the handicap are those of `penstock`. The one file of the load tests that imports the servers: it is
run in a process of its own, in place of `penstock`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from penstock.cli import main as penstock

WORKER_S = 0.005
GATEWAY_SHARE = 0.2
LONGEST_SPIN_S = 0.002


def slow_worker() -> None:
    from workers.execution import Runner

    execute = Runner.execute

    def slower(self: Runner, batch: Any, stages: Any) -> Any:
        time.sleep(WORKER_S)
        return execute(self, batch, stages)

    Runner.execute = slower  # type: ignore[method-assign]


def costly_gateway() -> None:
    from gateway.dataplane import DataPlane

    infer, spin = DataPlane.infer, Surcharge(GATEWAY_SHARE).spin

    def costlier(self: DataPlane, exchange: Any) -> None:
        spin()
        infer(self, exchange)

    DataPlane.infer = costlier  # type: ignore[method-assign]


class Surcharge:
    """Burns CPU in proportion to what the process takes by itself, so that it is a fifth of it on any machine, however
    fast that is at the moment. What was used before the first request (a start, a training) does not count."""

    def __init__(self, share: float, clock: Callable[[], float] = time.process_time) -> None:
        self._share = share
        self._clock = clock
        self._begun: float | None = None
        self._spun = 0.0

    def spin(self) -> None:
        now = self._clock()
        if self._begun is None:
            self._begun = now
        owed = self._share * (now - self._begun - self._spun) - self._spun
        until = now + min(owed, LONGEST_SPIN_S)
        while (reached := self._clock()) < until:
            pass
        self._spun += reached - now


HANDICAPS: dict[str, Callable[[], None]] = {"worker-5ms": slow_worker, "gateway-cpu-20": costly_gateway}


def main(handicap: str, *words: str) -> None:
    HANDICAPS[handicap]()
    sys.argv = ["penstock", *words]
    penstock()


if __name__ == "__main__":
    main(*sys.argv[1:])
