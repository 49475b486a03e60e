"""`penstock workers`: has Ray Serve run what the repository wants, on the cluster of RAY_ADDRESS or of this host."""

from __future__ import annotations

import os

import uvloop

from server.command import Config, command


def workers(config: Config = None) -> None:
    """Run the models of the repository as replicas on a Ray cluster; they take requests from the broker."""
    with command(config) as chosen:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read at import
        from server.workers_process import run

        uvloop.run(run(chosen))
