"""A model whose batches take 20 ms and more: how much of a bare loop's rows per second is left.

One compute thread on both sides, so that on two cores the gateway and the load have the other one. On fewer cores
they take from the worker's, and the figure says as much about the machine as about Penstock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.load import HttpTarget, load_http
from benchmarks.processes import ROOT, penstock, push
from benchmarks.rows import Plan, Row, alternating, median

BATCH = 32
THREADS = 1
CALLERS = 4 * BATCH
"""Two batches in flight, two more waiting: a full batch is always there."""


def compute(plan: Plan) -> list[Row]:
    seconds = max(3, plan.seconds)
    with tempfile.TemporaryDirectory() as folder, penstock(compute_threads=str(THREADS)) as server:
        artifact = models.mlp(Path(folder) / "mlp.onnx")
        url = push(server, str(artifact), "mlp", "--max-batch", str(BATCH))
        body, headers = models.binary_body(np.ones((1, 64), np.float32))
        target = HttpTarget(url, body, headers | {"Authorization": f"Bearer {server.api_key}"})
        load_http(target, CALLERS, 1)
        pairs = alternating(plan.rounds, lambda: _bare(artifact, seconds), lambda: load_http(target, CALLERS, seconds))
        mean_batch = _mean_batch(f"{server.url}/v2/models/mlp/stats", server.api_key)
    bad = sum(load.bad for _, load in pairs)
    shares = [100 * load.rate / rate for (rate, _), load in pairs]
    return [
        Row(
            part="compute",
            what=f"compute-bound MLP, batches of {BATCH}, {THREADS} thread: rows/s",
            value=median(shares),
            unit="% of a bare onnxruntime loop",
            at_least=95,
            rounds=shares,
            details={
                "rows/s": median([load.rate for _, load in pairs]),
                "bare rows/s": median([rate for (rate, _), _ in pairs]),
                "bare ms/batch": median([milliseconds for (_, milliseconds), _ in pairs]),
                "mean batch": mean_batch,
            },
            void=f"{bad} answers were not 2xx" if bad else "",
        )
    ]


def _bare(artifact: Path, seconds: float) -> tuple[float, float]:
    arguments = [str(artifact), str(BATCH), str(THREADS), str(seconds)]
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare_loop", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    rate, milliseconds = printed.split()
    return float(rate), float(milliseconds)


def _mean_batch(url: str, api_key: str) -> float:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        told = json.load(answer)["model_stats"][0]
    return float(told["inference_count"]) / max(1, int(told["execution_count"]))
