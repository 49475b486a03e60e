"""Ray Serve behind its own ingress, as it comes and as Ray advises for throughput."""

from __future__ import annotations

import functools

from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, SERVED, Peer, Program, Served, Site, foreign

MAX_ONGOING = 1024
BATCH_WAIT_S = 0
OPTIMISED = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
SETTINGS = (
    f"one replica, its own ingress, @serve.batch with max_batch_size {MAX_BATCH} (images {MAX_IMAGES}) and "
    f"batch_wait_timeout_s {BATCH_WAIT_S}, max_ongoing_requests {MAX_ONGOING}"
)


def program(site: Site, optimised: dict[str, str]) -> Program:
    ours = {
        "BATCH_WAIT_S": str(BATCH_WAIT_S),
        "MAX_ONGOING": str(MAX_ONGOING),
        "RAY_FOLDER": str(site.folder / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
    }
    return Program([str(site.python), str(SERVED / "ray_app.py")], ours | optimised)


def told(site: Site) -> Served:
    return Served([], {model: asks.row_json(f"{site.base}/{model}", model) for model in (PRODUCT, CORNER)})


PEER = Peer(
    name="ray",
    title="Ray Serve 2.60",
    settings=SETTINGS,
    serve=functools.partial(foreign, "ray", functools.partial(program, optimised={}), told),
    no_grpc="no V2 gRPC",
)
THROUGHPUT_PEER = Peer(
    name="ray-throughput",
    title="Ray Serve 2.60, throughput-optimised",
    settings=f"the same with {' '.join('='.join(pair) for pair in OPTIMISED.items())}",
    serve=functools.partial(foreign, "ray", functools.partial(program, optimised=OPTIMISED), told),
    no_grpc="no V2 gRPC",
)
