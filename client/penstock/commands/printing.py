"""What commands have in common: a connection, JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from penstock.client import Client

Json = Annotated[bool, typer.Option("--json", help="Plain JSON on stdout, and nothing else.")]


def connected() -> Client:
    import penstock

    return penstock.connect()


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Print rows under their heads, or the sentence `empty` where there are none."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(*heads, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for row in rows:
        grid.add_row(*(Text(cell, overflow="fold") for cell in row))
    if not grid.row_count:
        typer.echo(empty)
        return
    from rich.console import Console

    # Into a pipe or a file a table is as wide as its content: nothing is cut off or wrapped.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(grid)


def when(seconds: float | None) -> str:
    """Unix seconds as local date and time, "" for none."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else ""


def size(count: int) -> str:
    """Bytes for people: 999 B, 1.5 kB, 98.2 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
