"""`penstock up`: the whole of Penstock in one process, in the foreground."""

from __future__ import annotations

import os

import typer
import uvloop

from core import logs, settings
from core.errors import PenstockError
from server import outlets


def up() -> None:
    """Start a server here, all in one process."""
    outlets.secure()
    try:
        chosen = settings.load()
        logs.configure(chosen)
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read at import; our children are other programs
        from server.foreground import run

        uvloop.run(run(chosen))
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None
