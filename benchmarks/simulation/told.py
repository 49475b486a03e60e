"""A result of the simulator: where, when and with what it was made; as JSON, as a table and as plots.

python -m benchmarks.simulation.told RESULT.json PAGE.md   puts its table into that page in place of the last
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.rows import Row
from benchmarks.simulation import plots
from benchmarks.simulation.curves import Curve

SHOWN = re.compile(r"(?P<head><!-- simulated: (?P<name>\S+) -->\n).*?(?P<foot><!-- end of the result -->)", re.DOTALL)


class Told(msgspec.Struct, kw_only=True):
    date: str
    commit: str
    machine: dict[str, str]
    quick: bool
    seconds: float
    """How long it took."""
    parameters: dict[str, float]
    rows: list[Row]
    curves: list[Curve]


def tell(rows: list[Row], curves: list[Curve], parameters: dict[str, float], quick: bool, seconds: float) -> Told:
    where = report.result([], {}, 0.0, quick)
    return Told(
        date=where.date, commit=where.commit, machine=where.machine, quick=quick, seconds=round(seconds, 1),
        parameters=parameters, rows=rows, curves=curves,
    )  # fmt: skip


def save(told: Told, folder: Path = report.RESULTS) -> Path:
    """NAME.json and .md, and NAME-PLOT.png for each plot; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{told.date[:10]}-{told.commit}-simulation{'-quick' if told.quick else ''}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    path.with_suffix(".md").write_text(table(told))
    for name, figure in plots.figures(told.curves).items():
        figure.savefig(path.with_name(f"{path.stem}-{name}.png"), dpi=100)
    return path


def load(path: Path) -> Told:
    return msgspec.json.decode(path.read_bytes(), type=Told)


def show(name: str, page: str) -> str:
    """The page with the table of that result of ours in place of the one it showed."""
    told = table(load(report.RESULTS / name))
    return SHOWN.sub(lambda _: f"<!-- simulated: {name} -->\n{told}\n<!-- end of the result -->", page)


def table(told: Told) -> str:
    """All rows; what is not asked for has no goal."""
    parameters = ", ".join(f"{name} {value:g}" for name, value in told.parameters.items())
    lines = [
        f"Simulated {told.date[:10]} at commit `{told.commit}` ({parameters}).",
        *(["A quick run: not to be quoted."] if told.quick else []),
        "",
        "| what | simulated | goal | met |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, told.rows), ""])


def _line(row: Row) -> str:
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    details = "; ".join(f"{name} {_number(value)}" for name, value in row.details.items())
    return f"| {row.what}{f' ({details})' if details else ''} | {_number(row.value)} {row.unit} | {row.goal} | {met} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    report.main(sys.argv[1:], lambda file: table(load(file)), show)
