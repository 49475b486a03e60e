"""LitServe: one API server, one worker process."""

from __future__ import annotations

import functools

from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, SERVED, Peer, Program, Served, Site, foreign


def program(site: Site) -> Program:
    return Program([str(site.python), str(SERVED / "litserve_server.py")], {"BATCH_TIMEOUT": "0"})


def told(site: Site) -> Served:
    return Served([], {model: asks.row_json(f"{site.base}/{model}", model) for model in (PRODUCT, CORNER)})


PEER = Peer(
    name="litserve",
    title="LitServe 0.2.19",
    settings=f"one worker, one API server, fast_queue, max_batch_size {MAX_BATCH} (images {MAX_IMAGES}), "
    "batch_timeout 0 (its default), no request timeout; started anew for each model, for an idle worker of its takes "
    "a third of a core",
    serve=functools.partial(foreign, "litserve", program, told),
    no_grpc="no gRPC",
    starts=((PRODUCT,), (CORNER,)),
)
