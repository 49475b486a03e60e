"""What a job found: a table for the terminal, JSON with every histogram, a plot."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from loadtests.job import Seen
from loadtests.judge import Verdict, amount
from loadtests.seen import Round, whole

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("budget", "", "limit", "measured", "rounds", "verdict")


def table(verdicts: Sequence[Verdict]) -> str:
    rows = [COLUMNS, *map(_row, verdicts)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _row(verdict: Verdict) -> tuple[str, ...]:
    spread = f"{min(verdict.rounds):.3g} – {max(verdict.rounds):.3g}"
    if verdict.name in ("errors", "late"):
        spread = f"{100 * min(verdict.rounds):.3g} – {100 * max(verdict.rounds):.3g} %"
    measured = "void" if verdict.void else amount(verdict.name, verdict.measured)
    verdict_told = "kept" if verdict.kept else "BREACHED"
    return (str(verdict.budget), verdict.name, amount(verdict.name, verdict.limit), measured, spread, verdict_told)


def saved(head: dict[str, Any], seen: Seen, verdicts: Sequence[Verdict], folder: Path = RESULTS) -> Path:
    """load.json, which begins with `head`, and load.png; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    told = head | {
        "verdicts": [verdict.told() for verdict in verdicts],
        "seen": {str(budget): [_round(each) for each in rounds] for budget, rounds in seen},
    }
    path = folder / "load.json"
    path.write_text(json.dumps(told, indent=1) + "\n")
    plot(seen, folder / "load.png")
    return path


def header() -> dict[str, Any]:
    """When and where; `load_before`: runnable processes of others, if it is made before the job."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _round(each: Round) -> dict[str, Any]:
    return {"ours": each.ours.told(), "echo": each.echo.told()}


def plot(seen: Seen, path: Path) -> None:
    """Each budget's latencies by percentile, the server's and the echo's, from all rounds."""
    columns = 3
    rows = max(1, -(-len(seen) // columns))
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (budget, rounds) in zip(grid, seen, strict=False):
        total = whole(rounds)
        for side, color, name in ((total.ours, "tab:blue", "Penstock"), (total.echo, "tab:gray", "echo")):
            shares = [0.0, *(1 - 0.5**n for n in range(1, 12))]
            beyond = [1 / (1 - share) for share in shares]
            axes.plot(beyond, [1e3 * side.at(share) for share in shares], color=color, label=name)
        axes.set(xscale="log", yscale="log", title=str(budget), ylabel="ms")
        axes.set_xticks([2, 20, 100, 1000], ["p50", "p95", "p99", "p99.9"])
        axes.title.set_fontsize(8)
        axes.legend(fontsize=7)
    for axes in grid[len(seen) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=90)
