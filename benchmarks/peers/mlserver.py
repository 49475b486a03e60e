"""MLServer with a custom runtime and its adaptive batcher."""

from __future__ import annotations

import functools
import json
import shutil

from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, SERVED, Peer, Program, Served, Site, foreign
from loadtests.processes import free_port

MODELS = {PRODUCT: ("Product", MAX_BATCH), CORNER: ("Corner", MAX_IMAGES)}
BATCH_TIME_S = 0.001


def program(site: Site) -> Program:
    shutil.copy(SERVED / "mlserver_runtime.py", site.folder)
    settings = {
        "host": "127.0.0.1",
        "http_port": site.port,
        "grpc_port": site.grpc_port,
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (site.folder / "settings.json").write_text(json.dumps(settings))
    for model, (kind, max_batch) in MODELS.items():
        told = {
            "name": model,
            "implementation": f"mlserver_runtime.{kind}",
            "max_batch_size": max_batch,
            "max_batch_time": BATCH_TIME_S,
        }
        (site.folder / model).mkdir()
        (site.folder / model / "model-settings.json").write_text(json.dumps(told))
    command = [str(site.python.with_name("mlserver")), "start", str(site.folder)]
    return Program(command, {"PYTHONPATH": str(site.folder)})


def told(site: Site) -> Served:
    """It reads no binary tensors over REST: the image goes as JSON."""
    return Served([], {model: asks.v2_json(site.base, model) for model in MODELS}, site.grpc())


PEER = Peer(
    name="mlserver",
    title="MLServer 1.7.1",
    settings=f"custom runtime in the server's process (parallel_workers 0: faster here than its worker process), "
    f"max_batch_size {MAX_BATCH} (images {MAX_IMAGES}), max_batch_time {BATCH_TIME_S * 1e3:g} ms, debug off",
    serve=functools.partial(foreign, "mlserver", program, told),
)
