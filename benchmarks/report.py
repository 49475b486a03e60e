"""A result: where and when it was measured, its rows; as JSON, as a Markdown table and as a plot.

python -m benchmarks.report RESULT.json [PAGE.md]   prints the table, or puts it into that page in place of the last
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil
from matplotlib.figure import Figure

from benchmarks.rows import Row

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
BUSY = 0.5
EDGE = 2.5
SHOWN = re.compile(r"(?P<head><!-- result: (?P<name>\S+) -->\n).*?(?P<foot><!-- end of the result -->)", re.DOTALL)
"""Where a page shows a result, and which."""


class Result(msgspec.Struct, kw_only=True):
    date: str
    commit: str
    machine: dict[str, str]
    generators: dict[str, str]
    load_before: float
    """Runnable processes of others, the mean of the minute before: near 0 on a machine that measures only."""
    quick: bool
    rows: list[Row]


def result(rows: list[Row], generators: dict[str, str], load_before: float, quick: bool) -> Result:
    now = datetime.datetime.now(datetime.UTC)
    return Result(
        date=now.isoformat(timespec="seconds"),
        commit=_commit(),
        machine=_machine(),
        generators=generators,
        load_before=round(load_before, 2),
        quick=quick,
        rows=rows,
    )


def save(told: Result, folder: Path = RESULTS) -> Path:
    """RESULT.json, .md and .png, named by date and commit; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{told.date[:10]}-{told.commit}{'-quick' if told.quick else ''}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    path.with_suffix(".md").write_text(table(told))
    plot(told, path.with_suffix(".png"))
    return path


def show(name: str, page: str) -> str:
    """The page with the table of that result of ours in place of the one it showed."""
    told = table(load(RESULTS / name))
    return SHOWN.sub(lambda _: f"<!-- result: {name} -->\n{told}\n<!-- end of the result -->", page)


def load(path: Path) -> Result:
    return msgspec.json.decode(path.read_bytes(), type=Result)


# --- as text ------------------------------------------------------------------------------------------------------


def table(told: Result) -> str:
    lines = [
        f"Measured {told.date[:10]} at commit `{told.commit}` on {_where(told)}; load by {_by(told)}.",
        *_caveats(told),
        "",
        "| what | measured | goal | met | rounds |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row) for row in told.rows), ""])


def _line(row: Row) -> str:
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    spread = f"{min(row.rounds):.3g} – {max(row.rounds):.3g}" if row.rounds else ""
    value = f"void: {row.void}" if row.void else f"{_number(row.value)} {row.unit}"
    details = "; ".join(f"{name} {_number(value)}" for name, value in row.details.items())
    return f"| {row.what}{f' ({details})' if details else ''} | {value} | {row.goal} | {met} | {spread} |"


def _caveats(told: Result) -> list[str]:
    caveats = []
    if told.quick:
        caveats.append("A quick run: not to be quoted.")
    if told.load_before > BUSY:
        caveats.append(
            f"The machine was busy with other work (load {told.load_before:g} before): repeat it on a quiet one."
        )
    return caveats


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _where(told: Result) -> str:
    m = told.machine
    return f"{m['cores']} cores of {m['cpu']}, {m['memory']}, {m['kernel']}, Python {m['python']}"


def _by(told: Result) -> str:
    return f"{told.generators['http']} and {told.generators['grpc']}, on the same machine"


# --- as a picture -------------------------------------------------------------------------------------------------


def plot(told: Result, path: Path) -> None:
    """Each row's rounds as dots and its median as a bar, the goal as a line; the micro-benchmarks stay in the table.

    What lies beyond the right edge is drawn at it: its number stands beside.
    """
    shown = [row for row in told.rows if row.rounds and not row.void and row.part != "micro"]
    figure = Figure(figsize=(11, 0.3 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(reversed(shown)):
        scale = row.at_least or row.at_most or row.value or 1.0
        color = {True: "tab:green", False: "tab:red", None: "tab:blue"}[row.met]
        axes.barh(at, min(row.value / scale, EDGE), color=color, alpha=0.45)
        axes.plot([min(value / scale, EDGE) for value in row.rounds], [at] * len(row.rounds), "k.", markersize=4)
        label = f"{_number(row.value)} {row.unit}" + (f" (goal {row.goal})" if row.goal else "")
        axes.text(EDGE + 0.05, at, label, va="center", fontsize=8)
    axes.axvline(1.0, color="k", linewidth=0.8)
    axes.set(xlim=(0, EDGE), ylim=(-0.6, len(shown) - 0.4))
    axes.set_yticks(range(len(shown)), [row.what for row in reversed(shown)], fontsize=8)
    axes.set_xlabel("goal = 1 where there is one, else the median = 1")
    figure.savefig(path, dpi=100)


# --- where and when -----------------------------------------------------------------------------------------------


def _machine() -> dict[str, str]:
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    told = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in told.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """With a `+` behind it where the tree differs from it; 'unknown' outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return commit[:9] + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main(words: Sequence[str], text: Callable[[Path], str], show: Callable[[str, str], str]) -> None:
    """FILE: print the result as text. FILE PAGE: have the page show it, by `show` (name, page → page)."""
    file, *pages = map(Path, words)
    if not pages:
        print(text(file), end="")
    for page in pages:
        page.write_text(show(file.name, page.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:], lambda file: table(load(file)), show)
