"""BentoML: one service of one worker, batchable APIs."""

from __future__ import annotations

import functools
import shutil

from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, SERVED, Peer, Program, Served, Site, foreign


def program(site: Site) -> Program:
    shutil.copy(SERVED / "bentoml_service.py", site.folder / "service.py")
    command = [str(site.python.with_name("bentoml")), "serve", "service:Peer", "--host", "127.0.0.1"]
    command += ["--port", str(site.port), "--working-dir", str(site.folder)]
    return Program(command, {"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(site.folder / "home")})


def told(site: Site) -> Served:
    return Served([], {model: asks.rows_json(f"{site.base}/{model}", model) for model in (PRODUCT, CORNER)})


PEER = Peer(
    name="bentoml",
    title="BentoML 1.4.38",
    settings=f"one worker, batchable APIs, max_batch_size {MAX_BATCH} (images {MAX_IMAGES}), "
    "max_latency_ms 60,000 (its default), access log off",
    serve=functools.partial(foreign, "bentoml", program, told),
    no_grpc="no V2 gRPC",
)
