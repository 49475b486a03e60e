"""What might gain, tried on the same traces: variants of production's gateway, each beside production itself."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.rows import Row
from benchmarks.simulation import penstock
from benchmarks.simulation.acceptance import Size
from benchmarks.simulation.arrivals import Mix, Trace, poisson, together, trace
from benchmarks.simulation.device import Device
from benchmarks.simulation.ledger import Ledger
from benchmarks.simulation.scene import DEVICE, Scene, production
from gateway.batching.entry import Entry
from gateway.batching.outlook import PER_REPLICA, Outlook
from gateway.batching.queue import level_of


class Prompt(penstock.Gateway):
    """Sends a batch as soon as fewer than its window are in flight: nothing is held back."""

    punctual = False


class Near(Outlook):
    """Keeps no distance between batches."""

    __slots__ = ()

    def distance(self, rows: int, full: bool) -> int:
        return 0


class Close(penstock.Gateway):
    def __init__(self, system: penstock.System) -> None:
        super().__init__(system)
        self.policy.outlook = Near(self.policy.estimate)
        self.policy.outlook.count(system.shape.replicas, system.shape.gateways)


class Greedy(Outlook):
    """Takes all workers for its own, and what others send for nothing."""

    __slots__ = ()

    def count(self, replicas: int, gateways: int) -> None:
        super().count(replicas, 1)

    def surprised(self, surprise: int) -> None:
        """It learns nothing."""

    def got(self, work: float, now: int, more: bool) -> None:
        """It learns nothing."""


class Unshared(penstock.Gateway):
    def __init__(self, system: penstock.System) -> None:
        super().__init__(system)
        self.policy.outlook = Greedy(self.policy.estimate)


class Gradient(Prompt):
    """A window by Netflix's gradient: it grows by √window while a batch comes back as fast as the fastest have, and
    shrinks with the ratio of the two (concurrency-limits, Gradient2; the long-term reference is the best of late)."""

    def __init__(self, system: penstock.System) -> None:
        self._limit = 2.0 * system.shape.replicas / system.shape.gateways
        self._best = 0.0
        super().__init__(system)

    @property
    def window(self) -> int:
        return max(1, round(self._limit))

    def answer(self, delivery: penstock.Delivery, ran: list[bool]) -> None:
        took = self.system.clock.now - delivery.formed.dispatched
        per_row = took / max(1.0, float(self.policy.estimate.service(delivery.formed.rows)))
        self._best = min(self._best * 1.001, per_row) if self._best else per_row
        gradient = max(0.5, min(1.0, 1.5 * self._best / per_row))
        wanted = gradient * self._limit + self._limit**0.5 / 4
        ceiling = 4 * self.system.shape.replicas / self.system.shape.gateways
        self._limit = max(1.0, min(ceiling, 0.9 * self._limit + 0.1 * wanted))
        super().answer(delivery, ran)


class Margins(penstock.Gateway):
    """A margin that grows by a tenth of a batch's time with each late answer, and shrinks so that one in 200 is."""

    def answer(self, delivery: penstock.Delivery, ran: list[bool]) -> None:
        now = self.system.clock.now
        late = sum(now > entry.deadline for entry in delivery.formed.entries)
        self._move(late, len(delivery.formed.entries) - late)
        super().answer(delivery, ran)

    def given_up(self, entry: Entry) -> None:
        self._move(1, 0)
        super().given_up(entry)

    def _move(self, late: int, good: int) -> None:
        step = self.policy.estimate.longest / 10
        margin = self.admission.margin + step * late - step * good / 200
        self.admission.margin = int(max(0.0, min(margin, 20 * step)))


class Ageing(penstock.Gateway):
    """Who has waited a fifth of the time to its deadline goes up one priority, and again after each further fifth."""

    def _decide(self) -> None:
        now, queue = self.system.clock.now, self.policy.queue
        for entry in [entry for entry in queue if self._due_up(entry, now)]:
            assert isinstance(entry, penstock.Asked)
            self.policy.cancel(entry)
            self.policy.add(penstock.Asked(entry.request, entry.tenant, entry.priority - 1))
        super()._decide()

    def _due_up(self, entry: Entry, now: int) -> bool:
        assert isinstance(entry, penstock.Asked)
        fifths = 5 * (now - entry.arrived) // max(1, entry.deadline - entry.arrived)
        return entry.priority > 1 and level_of(entry.request.priority) - entry.priority < fifths


class Trial(NamedTuple):
    name: str
    gateway: type[penstock.Gateway]
    window: float = PER_REPLICA
    margin_s: float = 0.002


WINDOWS = (
    Trial("production", penstock.Gateway),
    Trial("all sent at once", Prompt),
    Trial("window of 1.5 a replica", penstock.Gateway, window=1.5),
    Trial("window of 1, all sent at once", Prompt, window=1.0),
    Trial("window of 3, all sent at once", Prompt, window=3.0),
    Trial("no distance between batches", Close),
    Trial("adaptive window (gradient)", Gradient),
    Trial("without its share of the workers", Unshared),
)
MARGINS = (
    Trial("production, margin 2 ms", penstock.Gateway),
    Trial("no margin", penstock.Gateway, margin_s=0.0),
    Trial("margin 5 ms", penstock.Gateway, margin_s=0.005),
    Trial("adaptive margin", Margins),
)
JITTERY = Device(DEVICE.fixed_s, DEVICE.row_s, DEVICE.max_batch, jitter=0.5)
SCENES = (
    Scene(load=1.2, target=2.5),
    Scene(load=1.2),
    Scene("bursty, CV² 16", load=0.9, target=2.5),
    Scene(load=1.2, replicas=4, gateways=2),
    Scene(load=3.0, replicas=4, gateways=2),
    Scene(load=1.0, replicas=4, gateways=2, target=2.5),
    Scene(load=1.2, replicas=4, gateways=2, target=2.5),
)


def windows(size: Size) -> list[Row]:
    return [_row("window", trial, scene, size) for scene in SCENES for trial in WINDOWS]


def margins(size: Size) -> list[Row]:
    scenes = [scene._replace(device=JITTERY) for scene in (SCENES[0], SCENES[1], SCENES[3])]
    return [_row("margin", trial, scene, size, ", times ± 25 %") for scene in scenes for trial in MARGINS]


def _row(part: str, trial: Trial, scene: Scene, size: Size, more: str = "") -> Row:
    at = scene._replace(requests=size.requests)
    shape = at.shape._replace(window=trial.window, margin_s=trial.margin_s)
    ledger = production(at, shape=shape, gateway=trial.gateway)
    where = f"{at.process}, {at.load:g}×, N = {at.replicas}, G = {at.gateways}, deadline {at.target:g} batches{more}"
    knee = at.device.limit * at.replicas
    return Row(
        part=part, what=f"{where}: {trial.name}", value=ledger.goodput / knee, unit="of the knee",
        details={"late %": 100 * ledger.late_share, "mean batch": ledger.mean_batch},
    )  # fmt: skip


# --- priorities ---------------------------------------------------------------------------------------------------


def ageing(size: Size) -> list[Row]:
    """A load of 0.8 at priority 1 and of 0.6 at priority 5, on one worker: what each gets answered in time."""
    rows = []
    for asked_high in (0.8, 1.2):
        scene = Scene(requests=size.requests)
        made = _two_priorities(scene, asked_high)
        for name, gateway in (("production", penstock.Gateway), ("priority ageing", Ageing)):
            ledger = penstock.simulate(
                made, scene.device, scene.shape, scene.seed, scene.warm_s, scene.seconds, gateway
            )
            rows.append(_priorities(ledger, name, asked_high, scene.device.limit))
    return rows


def _two_priorities(scene: Scene, asked_high: float) -> Trace:
    within = (scene.target_s, scene.target_s)
    limit, seconds = scene.device.limit, scene.seconds
    high = trace(poisson, asked_high * limit, seconds, Mix(within, tenant="high", priority=1), scene.seed)
    low = trace(poisson, 0.6 * limit, seconds, Mix(within, tenant="low", priority=5), scene.seed + 1)
    return together([high, low])


def _priorities(ledger: Ledger, name: str, asked_high: float, knee: float) -> Row:
    high, low = ledger.tenants["high"], ledger.tenants["low"]
    return Row(
        part="ageing", what=f"priority 1 asks {asked_high:g} of the knee, priority 5 0.6: {name}",
        value=ledger.goodput / knee, unit="of the knee",
        details={
            "priority 1 in time %": 100 * high.good / high.sent,
            "priority 5 in time %": 100 * low.good / low.sent,
            "late %": 100 * ledger.late_share,
        },
    )  # fmt: skip
