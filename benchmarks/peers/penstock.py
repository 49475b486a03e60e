"""Penstock, embedded and in its production shape; identity, checks and statistics on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import models
from benchmarks.distributed import shape
from benchmarks.load import GrpcTarget
from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, Peer, Served
from benchmarks.processes import penstock, push
from tests.running import RunningServer

ARTIFACTS = {PRODUCT: (models.product, MAX_BATCH), CORNER: (models.corner, MAX_IMAGES)}


@contextlib.contextmanager
def embedded(which: tuple[str, ...]) -> Iterator[Served]:
    with penstock() as server:
        for model in which:
            _push(server, model)
        yield Served([server.pid], *_told(server))


@contextlib.contextmanager
def distributed(which: tuple[str, ...]) -> Iterator[Served]:
    """One gateway, one replica for each model; RabbitMQ, the database and Ray's head belong to it."""
    with shape() as running:
        for model in which:
            if model != PRODUCT:  # which every shape serves
                _push(running.server, model)
        yield Served(running.roots(), *_told(running.server))


def _push(server: RunningServer, model: str) -> None:
    make, max_batch = ARTIFACTS[model]
    with tempfile.TemporaryDirectory() as folder:
        push(server, str(make(Path(folder) / f"{model}.onnx")), model, "--max-batch", str(max_batch))


def _told(server: RunningServer) -> tuple[dict[str, asks.Ask], dict[str, GrpcTarget]]:
    key = f"Bearer {server.api_key}"
    headers, metadata = {"Authorization": key}, {"authorization": key}
    rest = {
        PRODUCT: asks.v2_json(server.url, PRODUCT, headers),
        CORNER: asks.v2_binary(server.url, CORNER, headers),
    }
    return rest, {model: asks.v2_grpc(server.grpc, model, metadata) for model in ARTIFACTS}


PEER = Peer(
    name="penstock",
    title="Penstock, embedded",
    settings=f"one process, ONNX, --max-batch {MAX_BATCH} (images {MAX_IMAGES}), API keys checked, statistics on",
    serve=embedded,
)
DISTRIBUTED_PEER = Peer(
    name="penstock-distributed",
    title="Penstock, RabbitMQ + Ray",
    settings="the same through RabbitMQ, one gateway, one Ray replica for each model; broker, database, Ray and "
    "control plane on this machine too, and counted",
    serve=distributed,
)
