"""The figures as a picture: throughput and p99 over the number of callers, and what a request costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from matplotlib.figure import Figure

from benchmarks.peers.rounds import GRPC, REST


class Cell(Protocol):
    """What is drawn of a cell of `told.py`."""

    peer: str
    form: str
    callers: int
    rate: float
    p99_ms: float
    cpu_us: float
    void: str


def figure(cells: Sequence[Cell], titles: dict[str, str]) -> Any:
    """Void cells are left out; Penstock is drawn in black."""
    drawn = [cell for cell in cells if not cell.void]
    page = Figure(figsize=(12, 8), layout="constrained")
    (rest, delay), (grpc, cost) = page.subplots(2, 2)
    _curves(rest, drawn, REST, titles, lambda cell: cell.rate, "REST, JSON: requests a second")
    _curves(delay, drawn, REST, titles, lambda cell: cell.p99_ms, "REST, JSON: p99, ms")
    _curves(grpc, drawn, GRPC, titles, lambda cell: cell.rate, "gRPC: requests a second")
    _bars(cost, [cell for cell in drawn if cell.form == REST], titles)
    handles, labels = rest.get_legend_handles_labels()
    if handles:
        page.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    return page


def _curves(
    axes: Any, cells: list[Cell], form: str, titles: dict[str, str], value: Callable[[Cell], float], label: str
) -> None:
    for number, (name, title) in enumerate(titles.items()):
        points = sorted((cell.callers, value(cell)) for cell in cells if (cell.peer, cell.form) == (name, form))
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=title, **_style(name, number))
    axes.set(xscale="log", yscale="log", xlabel="callers", title=label)
    axes.grid(alpha=0.3)


def _bars(axes: Any, cells: list[Cell], titles: dict[str, str]) -> None:
    most = max((cell.callers for cell in cells), default=0)
    cost = {cell.peer: cell.cpu_us for cell in cells if cell.callers == most}
    shown = [name for name in titles if name in cost][::-1]
    axes.barh([titles[name] for name in shown], [cost[name] for name in shown], color="tab:blue", alpha=0.6)
    axes.set(xscale="log", title=f"REST, JSON: CPU of the server, µs a request, c={most}")
    axes.tick_params(axis="y", labelsize=7)


def _style(name: str, number: int) -> dict[str, Any]:
    if name.startswith("penstock"):
        return {"color": "k", "linewidth": 2, "linestyle": "--" if name.endswith("distributed") else "-"}
    return {"color": f"C{number}", "linewidth": 1}
