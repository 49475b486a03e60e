"""`penstock status`: how everything stands, once or again and again in place."""

from __future__ import annotations

import json as json_text
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.commands.deployments import replicas_text
from penstock.commands.printing import Json, as_json, connected
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from rich.console import RenderableType

Status = dict[str, Any]
VERSIONS = ("MODEL", "VERSION", "STATE", "READY", "QUEUE", "OLDEST", "IN FLIGHT", "ROWS/S")
REPLICAS = ("REPLICAS OF", "HOST", "DEVICE", "STATE", "WAIT", "RUN", "LONGEST", "BUSY")
GATEWAYS = ("GATEWAY", "HOST", "READY", "REVISION", "OPEN")


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on, in place, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds between two looks of --watch.")] = 1.0,
    json: Json = False,
) -> None:
    """Show how everything stands.

    Versions with their replicas ready and asked for, queues, where replicas run and how busy they are, gateways.
    With --watch and --json: one line of JSON a look.
    """
    with connected() as ps:
        if not watch:
            found = ps.status()
            as_json(found) if json else _print(found)
            return
        try:
            _lines(ps.status, every) if json else _live(ps.status, every)
        except KeyboardInterrupt:
            return


def _print(found: Status) -> None:
    from rich.console import Console

    # Into a pipe or a file a table is as wide as its content: nothing is cut off or wrapped.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(shown(found))


def _lines(ask: Callable[[], Status], every: float) -> None:
    while True:
        sys.stdout.write(json_text.dumps(ask(), ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
        time.sleep(every)


def _live(ask: Callable[[], Status], every: float) -> None:
    """Refresh in place. A server that does not answer is told of and asked again."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    body: RenderableType = shown(ask())
    with Live(body, console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.refresh()
            time.sleep(every)
            try:
                body = shown(ask())
                live.update(body)
            except PenstockError as error:
                live.update(Group(body, Text(f"\nnot now: {error.message}", style="bold red")))


# --- what is shown ------------------------------------------------------------------------------------------------


def shown(found: Status) -> RenderableType:
    """Tables of versions, replicas and gateways, a line above, and what to know of what is not as it should be."""
    from rich.console import Group
    from rich.text import Text

    versions = [(model, version) for model in found["models"] for version in model["versions"]]
    parts: list[RenderableType] = [Text(headline(found), style="bold")]
    parts += [Text(warning, style="bold yellow") for warning in warnings(found)]
    parts += _table(VERSIONS, [_version(model, version) for model, version in versions])
    parts += [
        Text(f"{model['name']} {version['version']}: {reason}")
        for model, version in versions
        for reason in reasons_of(version)
    ]
    parts += _table(REPLICAS, [row for model, version in versions for row in places(model["name"], version)])
    parts += _table(GATEWAYS, [_gateway(gateway, found) for gateway in found["gateways"]])
    return Group(*parts)


def headline(found: Status) -> str:
    versions = [version for model in found["models"] for version in model["versions"]]
    ready = sum(version["ready"] for version in versions)
    counts = {"model": len(found["models"]), "version": len(versions), "gateway": len(found["gateways"])}
    told = [f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items()]
    return f"{', '.join(told)}; replicas ready: {ready}; repository at revision {found['revision']}"


def warnings(found: Status) -> list[str]:
    said = []
    if not found["repository"]:
        said.append("the repository does not answer: what is shown of versions is the last that is known")
    if not found["listening"]:
        said.append("the broker does not answer: which replicas and gateways there are is not known")
    return said


def reasons_of(version: dict[str, Any]) -> list[str]:
    """Why a version or a replica of it does not serve, each reason once."""
    told = [version["reason"], *(replica["reason"] for replica in version["where"])]
    return list(dict.fromkeys(filter(None, told)))


def _version(model: dict[str, Any], version: dict[str, Any]) -> tuple[str, ...]:
    return (
        model["name"],
        " ".join([str(version["version"]), *(f"({alias})" for alias in version["aliases"])]),
        version["state"],
        f"{version['ready']} of {replicas_text(model['deployment'])}",
        str(version["waiting"] or ""),
        _ms(version["oldest_ms"]) if version["waiting"] else "",
        str(version["in_flight"] or ""),
        str(version["demand"] or ""),
    )


def places(model: str, version: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each device that replicas of the version run on, with the means of those."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for replica in version["where"]:
        found.setdefault((replica["host"], replica["device"]), []).append(replica)
    return [(f"{model} {version['version']}", *place, *_together(there)) for place, there in found.items()]


def _together(replicas: list[dict[str, Any]]) -> tuple[str, ...]:
    states = Counter(replica["state"].lower() for replica in replicas)
    runs = [replica["service_ms"] for replica in replicas if replica["service_ms"] is not None]
    return (
        ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
        _ms(_mean([replica["queue_wait_ms"] for replica in replicas])),
        _ms(_mean(runs)),
        _ms(max((replica["longest_ms"] or 0.0 for replica in replicas), default=0.0)),
        f"{_mean([replica['busy'] for replica in replicas]):.0%}",
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _gateway(gateway: dict[str, Any], found: Status) -> tuple[str, ...]:
    behind = found["revision"] - gateway["revision"]
    revision = str(gateway["revision"]) + (f" ({behind} behind)" if behind > 0 else "")
    host = f"{gateway['host']} pid {gateway['pid']}"
    return gateway["instance"], host, "yes" if gateway["ready"] else "no", revision, ", ".join(gateway["open"])


def _ms(milliseconds: float) -> str:
    """`0.42 ms`, `3.1 s`; nothing for nothing."""
    if milliseconds <= 0:
        return ""
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[RenderableType]:
    """An empty line and the table; nothing where it has no rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(*heads, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for row in rows:
        grid.add_row(*(Text(cell, overflow="fold") for cell in row))
    return [Text(""), grid] if rows else []
