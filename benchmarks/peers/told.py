"""A result of the rounds: medians, ratios and what is void; as JSON, as Markdown tables and as a plot.

python -m benchmarks.peers.told RESULT.json [PAGE.md]   prints the tables, or puts them into that page
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.peers import plots
from benchmarks.peers.registry import GOALS, PEERS, Goal
from benchmarks.peers.rounds import FORMS, REST, Failure, Measured, Plan, Seen
from benchmarks.rows import Row, median, ratio

SHOWN = re.compile(r"(?P<head><!-- peers: (?P<name>\S+) -->\n).*?(?P<foot><!-- end of the peers -->)", re.DOTALL)
"""Where a page shows a result, and which: `none` before there is one."""
FULL = 128
"""Callers at which CPU and memory are shown, where they were measured; else the most."""


class Server(msgspec.Struct, kw_only=True):
    """`missing`: in one sentence, why it has no figures; `failed`: rounds in which it could not be measured."""

    name: str
    title: str
    settings: str
    no_grpc: str = ""
    missing: str = ""
    failed: int = 0


class Cell(msgspec.Struct, kw_only=True):
    """Medians of the rounds of one server, form and number of callers; units as in `Seen`.

    `void`: why they do not count.
    """

    peer: str
    form: str
    callers: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    rss_mib: float
    pss_mib: float
    echoes: float
    rates: list[float]
    void: str = ""


class Told(msgspec.Struct, kw_only=True):
    date: str
    commit: str
    machine: dict[str, str]
    generators: dict[str, str]
    load_before: float
    quick: bool
    interrupted: bool
    rounds: int
    seconds: int
    """Of each measurement."""
    took_s: float
    servers: list[Server]
    cells: list[Cell]
    goals: list[Row]


def tell(
    names: list[str], measured: Measured, plan: Plan, generators: dict[str, str], load_before: float, took_s: float
) -> Told:
    where = report.result([], generators, load_before, plan.quick)
    return Told(
        date=where.date,
        commit=where.commit,
        machine=where.machine,
        generators=where.generators,
        load_before=where.load_before,
        quick=plan.quick,
        interrupted=measured.interrupted,
        rounds=plan.rounds,
        seconds=plan.seconds,
        took_s=round(took_s),
        servers=[_server(name, measured) for name in names],
        cells=cells(measured),
        goals=[row for goal in GOALS for row in _goal(goal, measured)],
    )


def _server(name: str, measured: Measured) -> Server:
    peer = PEERS[name]
    why = [failure.why for failure in measured.failures if failure.peer == name and not failure.form]
    seen = any(one.peer == name for one in measured.seen)
    return Server(
        name=name,
        title=peer.title,
        settings=peer.settings,
        no_grpc=peer.no_grpc,
        missing="" if seen else [*why, "it was not reached before the end"][0],
        failed=len(why),
    )


# --- medians, and what is void ------------------------------------------------------------------------------------


def cells(measured: Measured) -> list[Cell]:
    """In the order of the registry and the forms; a form whose answer was wrong has a void cell of no callers."""
    kinds = dict.fromkeys((one.peer, one.form, one.callers) for one in measured.seen)
    wrong = {(failure.peer, failure.form, 0): None for failure in measured.failures if failure.form}
    told = [_cell(kind, measured) for kind in [*kinds, *wrong]]
    return sorted(told, key=lambda cell: (list(PEERS).index(cell.peer), list(FORMS).index(cell.form), cell.callers))


def _cell(kind: tuple[str, str, int], measured: Measured) -> Cell:
    peer, form, callers = kind
    seen = [one for one in measured.seen if (one.peer, one.form, one.callers) == kind]

    def middle(name: str) -> float:
        return median([getattr(one, name) for one in seen])

    return Cell(
        peer=peer,
        form=form,
        callers=callers,
        rate=middle("rate"),
        p50_ms=middle("p50_ms"),
        p99_ms=middle("p99_ms"),
        cpu_us=middle("cpu_us"),
        rss_mib=middle("rss_mib"),
        pss_mib=middle("pss_mib"),
        echoes=middle("echoes"),
        rates=[one.rate for one in seen],
        void=_void(peer, form, seen, measured.failures),
    )


def _void(peer: str, form: str, seen: list[Seen], failures: list[Failure]) -> str:
    """A wrong answer, one that was not 2xx, or none; '' where all was right."""
    why = [failure.why for failure in failures if (failure.peer, failure.form) == (peer, form)]
    if why:
        return why[0]
    if bad := sum(one.bad for one in seen):
        return f"{bad} answers were not 2xx"
    return "a round had no answer at all" if any(not one.rate for one in seen) else ""


def _goal(goal: Goal, measured: Measured) -> Iterator[Row]:
    """The median of the rounds' ratios, each side in echoes of its own minute; nothing where a side is missing."""
    ours, theirs = ({one.number: one for one in _of(measured, name, goal.callers)} for name in (goal.ours, goal.other))
    ratios = [ratio(ours[number].echoes, theirs[number].echoes) for number in ours if number in theirs]
    if ratios:
        voids = (_void(n, REST, _of(measured, n, goal.callers), measured.failures) for n in (goal.ours, goal.other))
        yield Row(
            part="peers",
            what=f"{PEERS[goal.ours].title}, beside {PEERS[goal.other].title}, c={goal.callers}",
            value=median(ratios),
            unit="×",
            at_least=goal.at_least,
            rounds=ratios,
            void=next((void for void in voids if void), ""),
        )


def _of(measured: Measured, peer: str, callers: int) -> list[Seen]:
    return [one for one in measured.seen if (one.peer, one.form, one.callers) == (peer, REST, callers)]


# --- files --------------------------------------------------------------------------------------------------------


def save(told: Told, folder: Path = report.RESULTS) -> Path:
    """NAME.json, .md and .png; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{told.date[:10]}-{told.commit}-peers{'-quick' if told.quick else ''}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    path.with_suffix(".md").write_text(text(told))
    titles = {server.name: server.title for server in told.servers}
    plots.figure(told.cells, titles).savefig(path.with_suffix(".png"), dpi=100)
    return path


def load(path: Path) -> Told:
    return msgspec.json.decode(path.read_bytes(), type=Told)


def show(name: str, page: str) -> str:
    """The page with the tables and the plot of that result of ours in place of the one it showed."""
    told = text(load(report.RESULTS / name))
    plot = f"![Beside other servers](../benchmarks/results/{Path(name).stem}.png)"
    return SHOWN.sub(lambda _: f"<!-- peers: {name} -->\n{told}\n{plot}\n<!-- end of the peers -->", page)


# --- as text ------------------------------------------------------------------------------------------------------


def text(told: Told) -> str:
    parts = [_head(told), _goals(told), *(_table(told, form) for form in FORMS), _servers(told)]
    return "\n".join(part for part in parts if part)


def _head(told: Told) -> str:
    m = told.machine
    lines = [
        f"Measured {told.date[:10]} at commit `{told.commit}` on {m['cores']} cores of {m['cpu']}, {m['memory']}, "
        f"{m['kernel']}, Python {m['python']}; load by {told.generators['http']} and {told.generators['grpc']}, on the "
        f"same machine; {told.rounds} rounds of {told.seconds} s a measurement, {told.took_s / 60:.0f} minutes in all."
    ]
    if told.quick:
        lines.append("A quick run: not to be quoted.")
    if told.interrupted:
        lines.append("Interrupted before the end: some servers have fewer rounds than others.")
    if told.load_before > report.BUSY:
        lines.append(
            f"The machine was busy with other work (load {told.load_before:g} before): repeat it on a quiet one."
        )
    return "\n".join([*lines, ""])


def _goals(told: Told) -> str:
    if not told.goals:
        return ""
    lines = ["| requests a second, JSON over REST | measured | goal | met | rounds |", "|---|---|---|---|---|"]
    for row in told.goals:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        value = f"void: {row.void}" if row.void else f"{row.value:.3g} {row.unit}"
        spread = f"{min(row.rounds):.3g} – {max(row.rounds):.3g}"
        lines.append(f"| {row.what} | {value} | {row.goal} | {met} | {spread} |")
    return "\n".join([*lines, ""])


def _table(told: Told, form: str) -> str:
    """A line for each server, a column for each number of callers; CPU and memory of the fullest."""
    own = [cell for cell in told.cells if cell.form == form]
    callers = sorted({cell.callers for cell in own} - {0})
    if not own:
        return ""
    full = FULL if FULL in callers else max(callers, default=0)
    columns = [*(f"c={c}" for c in callers), f"CPU µs a request, c={full}", f"memory MiB, c={full}"]
    head = f"{FORMS[form][0].upper()}{FORMS[form][1:]}: requests a second, p50 / p99 in ms"
    lines = [f"| {head} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for server in told.servers:
        theirs = {cell.callers: cell for cell in own if cell.peer == server.name}
        lines.append(f"| {server.title} | {' | '.join(_line(server, form, theirs, callers, full))} |")
    return "\n".join([*lines, ""])


def _line(server: Server, form: str, theirs: dict[int, Cell], callers: list[int], full: int) -> list[str]:
    empty = [""] * (len(callers) + 1)
    if not theirs:
        return [server.missing or (server.no_grpc if "grpc" in form else "") or "not measured", *empty]
    if void := theirs.get(0):
        return [f"void: {void.void}", *empty]
    shown = [_figures(theirs[each]) if each in theirs else "" for each in callers]
    most = theirs.get(full)
    return [*shown, *([f"{most.cpu_us:,.0f}", f"{most.rss_mib:,.0f} ({most.pss_mib:,.0f})"] if most else ["", ""])]


def _figures(cell: Cell) -> str:
    if cell.void:
        return f"void: {cell.void}"
    echoes = f" ({cell.echoes:.2g} e)" if cell.echoes else ""
    return f"{cell.rate:,.0f}{echoes}, {_ms(cell.p50_ms)} / {_ms(cell.p99_ms)}"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _servers(told: Told) -> str:
    return "\n".join(
        ["How each is set up:", "", *(f"- {s.title}: {s.settings}.{_remark(s)}" for s in told.servers), ""]
    )


def _remark(server: Server) -> str:
    if server.missing:
        return f" **No figures: {server.missing.rstrip('.')}.**"
    return f" **In {server.failed} of the rounds it could not be measured.**" if server.failed else ""


if __name__ == "__main__":
    report.main(sys.argv[1:], lambda file: text(load(file)), show)
