"""Where systems meet: a device, who asks, and one trace for all of them."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.simulation import central, penstock
from benchmarks.simulation.arrivals import PROCESSES, Mix, Trace, trace
from benchmarks.simulation.device import Device
from benchmarks.simulation.ledger import Ledger
from benchmarks.simulation.rules import Maker, Terms, contenders, grid

DEVICE = Device(fixed_s=0.005, row_s=0.0005, max_batch=32, jitter=0.05)
"""21.5 ms for a full batch: an accelerator with a moderate model. 1,488 rows a second."""
TARGET = 5.0
"""Deadlines, in full batches."""
SHORTEST = 20
"""Deadlines that a run lasts, however few requests that would take."""
EMBEDDED_HOP_S, BROKER_HOP_S = 0.0001, 0.0005
HEAVY = "heavy-tailed rows"
"""Poisson arrivals whose requests bring 1 to a whole batch of rows, by a Pareto law of exponent 1.2."""


class Scene(NamedTuple):
    """`load`: of the knee, which is N full batches at a time. `target`: in full batches. `requests`: about."""

    process: str = "Poisson"
    load: float = 1.0
    replicas: int = 1
    gateways: int = 1
    target: float = TARGET
    requests: int = 6000
    seed: int = 1
    device: Device = DEVICE

    @property
    def target_s(self) -> float:
        return self.target * self.device.full_s

    @property
    def hop_s(self) -> float:
        return EMBEDDED_HOP_S if self.replicas == self.gateways == 1 else BROKER_HOP_S

    @property
    def shape(self) -> penstock.Shape:
        return penstock.Shape(self.gateways, self.replicas, self.hop_s)

    @property
    def terms(self) -> Terms:
        return Terms(self.device, self.target_s, self.hop_s)

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.load * self.device.limit * self.replicas

    @property
    def mix(self) -> Mix:
        within = (self.target_s, self.target_s)
        return Mix(within, 1.2, self.device.max_batch) if self.process == HEAVY else Mix(within)

    @property
    def warm_s(self) -> float:
        """Not counted: eight deadlines, in which a backlog settles."""
        return 8 * self.target_s

    @property
    def seconds(self) -> float:
        return self.warm_s + max(self.requests * self.mix.mean_rows / self.rate, SHORTEST * self.target_s)

    def trace(self) -> Trace:
        process = PROCESSES["Poisson" if self.process == HEAVY else self.process]
        return trace(process, self.rate, self.seconds, self.mix, self.seed)


KINDS = [*PROCESSES, HEAVY]


def production(scene: Scene, made: Trace | None = None, shape: penstock.Shape | None = None,
               gateway: type[penstock.Gateway] = penstock.Gateway) -> Ledger:  # fmt: skip
    return penstock.simulate(
        made or scene.trace(), scene.device, shape or scene.shape, scene.seed, scene.warm_s, scene.seconds, gateway
    )


def ruled(scene: Scene, maker: Maker, made: Trace | None = None) -> Ledger:
    return central.simulate(
        made or scene.trace(), scene.device, maker(), scene.replicas, scene.hop_s, scene.seed, scene.warm_s,
        scene.seconds,
    )  # fmt: skip


def best_fixed(scene: Scene, made: Trace) -> tuple[float, str]:
    """The greatest share in time of any fixed (B, T), and which it was."""
    return max((ruled(scene, maker, made).good_share, name) for name, maker in grid(scene.terms))


def rivals(scene: Scene, made: Trace) -> dict[str, Ledger]:
    """Each rule at the best of its settings on this very trace."""
    found = {}
    for name, makers in contenders(scene.terms).items():
        ledgers = [ruled(scene, maker, made) for maker in makers]
        found[name] = max(ledgers, key=_good_share)
    return found


def _good_share(ledger: Ledger) -> float:
    return ledger.good_share
