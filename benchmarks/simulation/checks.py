"""The simulator against the textbook: before it is believed about what has no formula.

Mean time in system, of every request from the first on: M/D/1 by Pollaczek and Khinchine, M/M/1, and M/M/2 by Erlang's
C for the replicas. Production's own policy with batches of one is an M/D/1 queue too. Each is the mean of runs whose
sampled load is put into the formula, since that, not the simulator, is most of the noise of a finite run.
"""

from __future__ import annotations

import random

from benchmarks.rows import Row
from benchmarks.simulation import central, penstock
from benchmarks.simulation.arrivals import Mix, Trace, poisson, trace
from benchmarks.simulation.clock import SECOND
from benchmarks.simulation.device import Device, Exponential
from benchmarks.simulation.ledger import Ledger
from benchmarks.simulation.rules import Alone, Terms

SERVICE_S = 0.01
FOREVER_S = 1e6
NO_DEADLINE = Mix((0.0, 0.0))


class Recorded(Exponential, frozen=True):
    """Keeps what it drew, so that the formula can be asked about the sample that was drawn."""

    drawn: list[int] = []

    def time(self, rows: int, chance: random.Random) -> int:
        took = super().time(rows, chance)
        self.drawn.append(took)
        return took


def md1(rate: float, service_s: float) -> float:
    load = rate * service_s
    return service_s + load * service_s / (2 * (1 - load))


def mm1(rate: float, service_s: float) -> float:
    return service_s / (1 - rate * service_s)


def mm2(rate: float, service_s: float) -> float:
    load = rate * service_s / 2
    return service_s / (1 - load * load)


def _asked(requests: int, load: float, seed: int, servers: int = 1) -> tuple[Trace, float]:
    """A Poisson trace and the rate that came of it."""
    seconds = requests * SERVICE_S / load / servers
    made = trace(poisson, servers * load / SERVICE_S, seconds, NO_DEADLINE, seed)
    return made, len(made) / (made[-1].at / SECOND)


def check_md1(requests: int, load: float, seed: int) -> float:
    """Simulated ÷ expected."""
    device = Device(SERVICE_S, 0.0, 1)
    made, rate = _asked(requests, load, seed)
    ledger = central.simulate(made, device, Alone(Terms(device, FOREVER_S)))
    return ledger.mean_latency_s / md1(rate, SERVICE_S)


def check_penstock(requests: int, load: float, seed: int) -> float:
    """Production's policy, one by one, is first come, first served."""
    made, rate = _asked(requests, load, seed)
    ledger = penstock.simulate(made, Device(SERVICE_S, 0.0, 1))
    return ledger.mean_latency_s / md1(rate, SERVICE_S)


def check_mm(servers: int, requests: int, load: float, seed: int) -> float:
    device = Recorded(SERVICE_S, 0.0, 1, drawn=[])
    made, rate = _asked(requests, load, seed, servers)
    ledger: Ledger = central.simulate(made, device, Alone(Terms(device, FOREVER_S)), servers, seed=seed)
    service = sum(device.drawn) / len(device.drawn) / SECOND
    return ledger.mean_latency_s / (mm1 if servers == 1 else mm2)(rate, service)


def rows(requests: int, load: float, runs: int) -> list[Row]:
    checks = {
        "M/D/1": [check_md1(requests, load, seed) for seed in range(runs)],
        "M/M/1": [check_mm(1, requests, load, seed) for seed in range(runs)],
        "M/M/2": [check_mm(2, requests, load, seed) for seed in range(runs)],
        "production's policy, batches of one, as M/D/1": [
            check_penstock(requests // 4, load, seed) for seed in range(runs)
        ],
    }
    return [_row(name, ratios) for name, ratios in checks.items()]


def _row(name: str, ratios: list[float]) -> Row:
    error = 100 * abs(sum(ratios) / len(ratios) - 1)
    rounds = [100 * (ratio - 1) for ratio in ratios]
    return Row(
        part="checks", what=f"{name}: mean time in system", value=error, unit="% off", at_most=1.0, rounds=rounds
    )
