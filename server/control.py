"""`penstock control`: the control plane by itself, over a repository that gateways and workers share."""

from __future__ import annotations

import os

import uvloop

from server.command import Config, command


def control(config: Config = None) -> None:
    """Serve the API that changes things, /api/v1, and its documentation at /docs."""
    with command(config) as chosen:
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read at import
        from server.control_plane import run

        uvloop.run(run(chosen))
