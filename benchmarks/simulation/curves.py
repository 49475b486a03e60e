"""Goodput over load, of production and of every other rule: what is plotted."""

from __future__ import annotations

import msgspec

from benchmarks.simulation.acceptance import Size
from benchmarks.simulation.scene import Scene, production, rivals

LOADS = (0.1, 0.5, 0.8, 1.0, 1.2, 2.0, 4.0, 10.0)


class Curve(msgspec.Struct, kw_only=True):
    """`goodput` of the knee and `p99_ms` of those in time, by `loads` of the knee."""

    scene: str
    system: str
    loads: list[float]
    goodput: list[float]
    p99_ms: list[float]


def curves(size: Size) -> list[Curve]:
    scenes = [Scene(), Scene("bursty, CV² 16", target=2.5), Scene(replicas=4, gateways=2)]
    loads = LOADS[::3] if size.quick else LOADS
    return [curve for scene in scenes for curve in _of(scene, loads, size)]


def _of(scene: Scene, loads: tuple[float, ...], size: Size) -> list[Curve]:
    name = f"{scene.process}, N = {scene.replicas}, G = {scene.gateways}, deadline {scene.target:g} batches"
    knee = scene.device.limit * scene.replicas
    found: dict[str, Curve] = {}
    for load in loads:
        at = scene._replace(load=load, requests=round(size.requests * max(1.0, load / 2)))
        made = at.trace()
        for system, ledger in {"Penstock": production(at, made), **rivals(at, made)}.items():
            curve = found.setdefault(system, Curve(scene=name, system=system, loads=[], goodput=[], p99_ms=[]))
            curve.loads.append(load)
            curve.goodput.append(round(ledger.goodput / knee, 4))
            curve.p99_ms.append(round(1e3 * ledger.latency_s(0.99), 2))
    return list(found.values())
