"""`penstock control`: the control plane by itself, over a repository that gateways and workers share."""

from __future__ import annotations

import os

import typer
import uvloop

from core import logs, settings
from core.errors import PenstockError
from server import outlets


def control() -> None:
    """Serve the API that changes things, /api/v1, and its documentation at /docs."""
    outlets.secure()
    try:
        chosen = settings.load()
        logs.configure(chosen)
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read at import
        from server.control_plane import run

        uvloop.run(run(chosen))
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None
