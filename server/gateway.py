"""`penstock gateway`: the data plane by itself, in front of a broker, as one process or several on one socket."""

from __future__ import annotations

import os
from typing import Annotated

import typer
import uvloop

from core.settings import Settings
from server.command import Config, command

Processes = Annotated[int, typer.Option("--processes", min=1, max=256, help="gateway processes that share the ports")]


def gateway(processes: Processes = 1, config: Config = None) -> None:
    """Serve REST and gRPC; batches go to workers through the broker (PENSTOCK_AMQP_URL)."""
    with command(config) as chosen:
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read at import; our children are other programs
        uvloop.run(_run(chosen, processes))


async def _run(chosen: Settings, processes: int) -> None:
    if processes == 1:
        from server.gateway_process import serve_alone

        await serve_alone(chosen)
    else:
        from server.siblings import run

        await run(chosen, processes)
