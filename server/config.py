"""`penstock config`: every setting of a server, its value and where it came from."""

from __future__ import annotations

import json as json_text
import sys
from typing import Annotated

import typer

from core import settings
from core.errors import InvalidRequest
from server.command import Config, choose


def config(
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Plain JSON on stdout, and nothing else.")] = False,
) -> None:
    """Print every setting of a server, its value and where it came from."""
    try:
        choose(config)
        rows = shown(settings.origins(settings.load()))
    except InvalidRequest as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None
    for variable, meant in settings.slips().items():
        typer.echo(f"penstock: {variable} sets nothing: is {meant} meant?", err=True)
    if json:
        sys.stdout.write(json_text.dumps(rows, indent=2) + "\n")
    else:
        _table(rows)


def shown(origins: list[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    """A row for each setting: name, environment variable, value (without its password), origin, description."""
    return [
        {
            "name": name,
            "variable": f"PENSTOCK_{name.upper()}",
            "value": value,
            "origin": origin,
            "description": description,
        }
        for name, value, origin, description in origins
    ]


def _table(rows: list[dict[str, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("SETTING", "VALUE", "FROM", "WHAT IT IS", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in rows:
        origin = "environment" if row["origin"].startswith(settings.PREFIX) else row["origin"]
        style = "" if origin == "default" else "bold"
        cells = (row["variable"], row["value"], origin, row["description"])
        table.add_row(*(Text(cell, overflow="fold") for cell in cells), style=style)
    # Into a pipe or a file a table is as wide as its content: nothing is cut off or wrapped.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)
