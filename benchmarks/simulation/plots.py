"""The curves as pictures: one for each scene."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from benchmarks.simulation.curves import Curve


def figures(curves: list[Curve]) -> dict[str, Any]:
    """By name: goodput-1, goodput-2, … in the order of the scenes."""
    scenes = list(dict.fromkeys(curve.scene for curve in curves))
    return {
        f"goodput-{number}": _figure(scene, [curve for curve in curves if curve.scene == scene])
        for number, scene in enumerate(scenes, 1)
    }


def _figure(scene: str, curves: list[Curve]) -> Any:
    figure = Figure(figsize=(9, 4), layout="constrained")
    goodput, latency = figure.subplots(1, 2)
    for curve in curves:
        ours = curve.system == "Penstock"
        style: dict[str, Any] = {"color": "k", "linewidth": 2, "zorder": 3} if ours else {"linewidth": 1}
        goodput.plot(curve.loads, curve.goodput, marker=".", label=curve.system, **style)
        latency.plot(curve.loads, curve.p99_ms, marker=".", **style)
    for axes, label in ((goodput, "goodput, of the knee"), (latency, "p99 of those in time, ms")):
        axes.set(xscale="log", xlabel="load, of the knee", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    goodput.legend(fontsize=7)
    figure.suptitle(scene, fontsize=10)
    return figure
