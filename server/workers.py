"""`penstock workers`: has Ray Serve run what the repository wants, on the cluster of RAY_ADDRESS or of this host."""

from __future__ import annotations

import os

import typer
import uvloop

from core import logs, settings
from core.errors import PenstockError
from server import outlets


def workers() -> None:
    """Run the models of the repository as replicas on a Ray cluster; they take requests from the broker."""
    outlets.secure()
    try:
        chosen = settings.load()
        logs.configure(chosen)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from server.workers_process import run

        uvloop.run(run(chosen))
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None
