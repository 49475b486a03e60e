"""What production's policy has to be, each as a row of the result: against the optimum, against the best fixed setting,
late among the accepted, flooded tenants, and the knee's formula. Every criterion takes the gateway that it judges, so
that a broken one can be shown to fail it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.rows import Row
from benchmarks.simulation import optimum, penstock
from benchmarks.simulation.arrivals import Mix, poisson, together, trace
from benchmarks.simulation.clock import SECOND
from benchmarks.simulation.device import Device
from benchmarks.simulation.ledger import Tally
from benchmarks.simulation.scene import SHORTEST, Scene, best_fixed, production

Gateways = type[penstock.Gateway]
OURS: Gateways = penstock.Gateway


class Size(NamedTuple):
    """How much to simulate."""

    requests: int = 3000
    small_traces: int = 120
    longest: int = 12
    quick: bool = False


QUICK = Size(requests=1000, small_traces=20, longest=9, quick=True)


# --- against the optimum ------------------------------------------------------------------------------------------


class Small(NamedTuple):
    """One short trace and what was answered of it in time."""

    load: float
    optimum: int
    ours: int


def small(seed: int, longest: int, gateway: Gateways = OURS) -> Small:
    """Batches of at most 4, loads of 0.5 to 2, deadlines of 2 to 6 full batches, each request with its own; no hop."""
    chance = random.Random(f"small {seed}")
    device = Device(chance.choice([0.005, 0.02]), chance.choice([0.002, 0.01]), chance.choice([2, 4]))
    load = chance.choice([0.5, 1.0, 2.0])
    tightest = chance.uniform(2, 4) * device.full_s
    mix = Mix((tightest, 1.5 * tightest))
    made = trace(poisson, load * device.limit, 1e4 * device.full_s, mix, seed)[:longest]
    ours = penstock.simulate(made, device, gateway=gateway)
    return Small(load, optimum.best(made, device), ours.total.good)


def against_optimum(size: Size, gateway: Gateways = OURS) -> list[Row]:
    """Goodput over all traces: on a single one of a dozen requests one miss is already 8 %."""
    cases = [small(seed, size.longest, gateway) for seed in range(size.small_traces)]
    shares = {load: _share(case for case in cases if case.load == load) for load in (0.5, 1.0, 2.0)}
    row = Row(
        part="optimum",
        what=f"{len(cases)} traces of {size.longest} requests: goodput",
        value=_share(cases),
        unit="of the clairvoyant optimum",
        at_least=0.95,
        details={f"at {load:g}×": share for load, share in shares.items()},
    )
    return [row]


def _share(cases: Iterable[Small]) -> float:
    kept = list(cases)
    return sum(case.ours for case in kept) / max(1, sum(case.optimum for case in kept))


# --- against the best fixed setting -------------------------------------------------------------------------------

LOADS = (0.5, 0.8, 1.0, 1.1, 1.2)
FLEETS = ((1, 1), (2, 1), (2, 2), (4, 2), (8, 4))
"""Replicas, gateways."""


def against_fixed(scene: Scene, size: Size, loads: tuple[float, ...] = LOADS, gateway: Gateways = OURS) -> Row:
    """The worst of the loads. Fixed settings keep no margin for what is not simulated: what ours costs is told too."""
    found, bold = {}, {}
    late = 0.0
    for load in loads:
        at = scene._replace(load=load, requests=size.requests)
        made = at.trace()
        ours, best = production(at, made, gateway=gateway), best_fixed(at, made)[0]
        found[load] = ours.good_share / best
        bold[load] = production(at, made, at.shape._replace(margin_s=0.0), gateway).good_share / best
        late = max(late, 100 * ours.late_share)
    return Row(
        part="fixed",
        what=f"{scene.process}, N = {scene.replicas}, G = {scene.gateways}, deadline {scene.target:g} batches: goodput",
        value=min(found.values()),
        unit="of the best fixed (B, T)",
        at_least=0.99,
        rounds=list(found.values()),
        details={
            "at load": min(found, key=lambda load: found[load]),
            "late % at most": late,
            "without a margin": min(bold.values()),
        },
    )


# --- late among the accepted --------------------------------------------------------------------------------------

OVERLOADS = (0.1, 0.5, 0.9, 1.0, 1.2, 2.0, 5.0, 10.0)


def lateness(scene: Scene, size: Size, loads: tuple[float, ...] = OVERLOADS, gateway: Gateways = OURS) -> list[Row]:
    """The worst of the loads; and the goodput above the knee, of its peak."""
    scenes = [scene._replace(load=load, requests=round(size.requests * max(1.0, load / 2))) for load in loads]
    ledgers = {at.load: production(at, gateway=gateway) for at in scenes}
    late = {load: 100 * ledger.late_share for load, ledger in ledgers.items()}
    goodput = {load: ledger.goodput for load, ledger in ledgers.items()}
    above = [goodput[load] / max(goodput.values()) for load in loads if load > 1]
    what = f"{scene.process}, N = {scene.replicas}, G = {scene.gateways}, {loads[0]:g}× to {loads[-1]:g}×"
    return [
        Row(part="late", what=f"{what}: late", value=max(late.values()), unit="% of accepted", at_most=1.0,
            rounds=list(late.values()), details={"at load": max(late, key=lambda load: late[load])}),
        Row(part="late", what=f"{what}: least goodput above the knee", value=min(above), unit="of its peak",
            rounds=above),
    ]  # fmt: skip


# --- flooded tenants ----------------------------------------------------------------------------------------------

TENANTS = ("b", "c", "d")


def fairness(scene: Scene, size: Size, asks: float, gateway: Gateways = OURS) -> Row:
    """One tenant sends 10 times the knee; three others `asks` of their share, a quarter of the knee. What the worst of
    them gets answered in time, of the lesser of what it sends and its share."""
    knee = scene.device.limit * scene.replicas
    seconds = scene.warm_s + max(size.requests / knee, SHORTEST * scene.target_s)
    within = (scene.target_s, scene.target_s)
    flood = trace(poisson, 10 * knee, seconds, Mix(within, tenant="flood"), scene.seed)
    others = [
        trace(poisson, asks * knee / 4, seconds, Mix(within, tenant=name), scene.seed + at)
        for at, name in enumerate(TENANTS, 1)
    ]
    made = together([flood, *others])
    ledger = penstock.simulate(made, scene.device, scene.shape, scene.seed, scene.warm_s, seconds, gateway)
    share = knee / 4 * ((ledger.end - ledger.begin) / SECOND)
    got = [ledger.tenants[name].good / min(share, ledger.tenants[name].sent) for name in TENANTS]
    return Row(
        part="fair",
        what=f"a flood of 10×, others ask {asks:g} of their share, N = {scene.replicas}, G = {scene.gateways}: "
        "the worst of them",
        value=min(got),
        unit="of its fair share",
        at_least=0.95,
        rounds=got,
        details={
            "goodput of the knee": ledger.goodput / knee,
            "late of theirs %": max(_late(ledger.tenants[name]) for name in TENANTS),
            "late of the flood's %": _late(ledger.tenants["flood"]),
        },
    )


def _late(tally: Tally) -> float:
    """Percent of the accepted."""
    return 100 * tally.late / max(1, tally.good + tally.late)
