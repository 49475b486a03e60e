"""`penstock up`: the whole of Penstock in the foreground: in one process, or in its production shape."""

from __future__ import annotations

import os
from typing import Annotated

import typer
import uvloop

from core import logs, settings
from core.errors import PenstockError
from server import outlets

Distributed = Annotated[
    bool,
    typer.Option("--distributed", help="the production shape, all on this machine"),
]


def up(distributed: Distributed = False) -> None:
    """Start a server here, all in one process."""
    outlets.secure()
    try:
        chosen = settings.load()
        logs.configure(chosen)
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read at import; our children are other programs
        uvloop.run(_run(chosen, distributed))
    except PenstockError as error:
        typer.echo(f"penstock: {error.message}", err=True)
        raise typer.Exit(1) from None


async def _run(chosen: settings.Settings, distributed: bool) -> None:
    from server.foreground import run

    if distributed:
        from server.distributed import Distributed

        await run(Distributed(chosen))
    else:
        from server.embedded import Embedded

        await run(Embedded(chosen))
