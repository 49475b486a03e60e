"""`penstock up`: the whole of Penstock in the foreground: in one process, or in its production shape."""

from __future__ import annotations

import os
from typing import Annotated

import typer
import uvloop

from core.settings import Settings
from server.command import Config, command

Distributed = Annotated[
    bool,
    typer.Option("--distributed", help="the production shape, all on this machine"),
]


def up(distributed: Distributed = False, config: Config = None) -> None:
    """Start a server here, in one process or in its production shape."""
    with command(config) as chosen:
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read at import; our children are other programs
        uvloop.run(_run(chosen, distributed))


async def _run(chosen: Settings, distributed: bool) -> None:
    from server.foreground import run

    if distributed:
        from server.distributed import Distributed

        await run(Distributed(chosen))
    else:
        from server.embedded import Embedded

        await run(Embedded(chosen))
