"""`penstock services`: the servers of the production shape, for development and tests."""

from __future__ import annotations

import json as json_text
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from core import settings
from core.errors import PenstockError
from server.display import Display
from server.servers.choice import masked, may_install
from server.servers.family import family
from server.servers.fleet import Fleet, Status, shell_lines

Only = Annotated[
    str, typer.Option(metavar="NAME,NAME", help="Only these: rabbitmq, mongo, toxiproxy, ray, jaeger, prometheus.")
]
Json = Annotated[bool, typer.Option("--json", help="Plain JSON on stdout, and nothing else.")]

services = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Start, stop and look at the servers that the distributed mode needs, and is watched with.\n\n"
    "One whose URL is in the environment (PENSTOCK_AMQP_URL, PENSTOCK_MONGO_URL, PENSTOCK_TOXIPROXY_URL, RAY_ADDRESS, "
    "PENSTOCK_JAEGER_URL, PENSTOCK_PROMETHEUS_URL) is left alone. The others run in containers where an engine "
    "answers, else natively, on loopback; their state is in PENSTOCK_HOME/services.",
)


@services.command()
def up(only: Only = "") -> None:
    """Start what does not run yet, and wait until it answers."""
    try:
        fleet = _fleet()
        chosen = fleet.chosen(only)
        with Display() as display:
            failed = fleet.up(chosen, display.step)
    except PenstockError as error:
        raise _failure(error.message) from None
    _show(fleet.status(chosen))
    for sentence in failed.values():
        typer.echo(f"penstock: {sentence}", err=True)
    if failed:
        raise typer.Exit(1)


@services.command()
def down(only: Only = "") -> None:
    """Stop what was started here; what does not stop in time is killed, and named."""
    try:
        fleet = _fleet()
        with Display() as display:
            killed = fleet.down(fleet.chosen(only), display.step)
    except PenstockError as error:
        raise _failure(error.message) from None
    if killed:
        typer.echo(f"did not stop in time and had to be killed: {', '.join(killed)}")


@services.command()
def status(only: Only = "", json: Json = False) -> None:
    """Show each server: whether it runs, its URL, process and version."""
    try:
        fleet = _fleet()
        found = fleet.status(fleet.chosen(only))
    except PenstockError as error:
        raise _failure(error.message) from None
    if json:
        _print_json([row(each) for each in found])
    else:
        _show(found)


@services.command()
def env(only: Only = "", json: Json = False) -> None:
    """Print shell lines by which clients find what runs: eval "$(penstock services env)". Passwords included."""
    try:
        fleet = _fleet()
        exports = fleet.exports(fleet.chosen(only))
    except PenstockError as error:
        raise _failure(error.message) from None
    if json:
        _print_json(exports)
    else:
        sys.stdout.write(shell_lines(exports))


def row(status: Status) -> dict[str, Any]:
    """What is shown of a server."""
    return {
        "name": status.name,
        "state": status.state,
        "source": str(status.source),
        "url": masked(status.url),
        "pid": status.pid or None,
        "version": status.version,
    }


def _fleet() -> Fleet:
    return Fleet(settings.load().home, family(), os.environ, may_install=may_install(os.getuid(), os.environ))


def _failure(sentence: str) -> typer.Exit:
    typer.echo(f"penstock: {sentence}", err=True)
    return typer.Exit(1)


def _print_json(value: object) -> None:
    sys.stdout.write(json_text.dumps(value, indent=2) + "\n")


def _show(found: Sequence[Status]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "SERVER", "STATE", "FROM", "URL", "PID", "VERSION", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for each in found:
        table.add_row(*(str(cell if cell is not None else "") for cell in row(each).values()))
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)
