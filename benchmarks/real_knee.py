"""The knee of a real server beside the formula's and the simulator's, with the times of the same run.

The model stands for an accelerator: it sleeps 20 ms and 2 ms for each row. What that comes to here is read off the
server's own statistics, one request of each size at a time, as a least-squares line; what a caller sees beyond it is
the overhead. Then the highest rate that is answered in time is found by bisection, arrivals on a schedule.
"""

from __future__ import annotations

import tempfile
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import orjson
import uvloop

from benchmarks import models
from benchmarks.load import HttpTarget, percentile
from benchmarks.open_loop import offer
from benchmarks.processes import penstock, push_class
from benchmarks.rows import Plan, Row
from benchmarks.simulation import knee
from benchmarks.simulation.device import Device
from benchmarks.simulation.scene import Scene
from gateway.batching.estimate import affine
from tests.running import RunningServer

DEADLINE_S = 0.2
LARGEST = (16, 64)
"""Batches are bounded by the maximum with the first, by the deadline with the second."""
BUSY = 0.8
TRIES = 2
"""Of each rate; the better one counts: what else runs on the machine only takes away."""


def real_knee(plan: Plan) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, penstock() as server:
        return [row for largest in LARGEST for row in _compared(server, Path(folder), largest, plan)]


def _compared(server: RunningServer, folder: Path, largest: int, plan: Plan) -> list[Row]:
    url = push_class(server, folder, models.PYTHON_ROWS, f"device-{largest}", largest)
    device, overhead_s = _calibrated(url, server.api_key, largest, plan)
    margin_s = Scene().shape.margin_s
    expected = knee.formula(device, 1, DEADLINE_S, overhead_s + margin_s)
    simulated = knee.simulated(Scene(target=DEADLINE_S / device.full_s, requests=3000, device=device))
    real, busiest = _found(url, server.api_key, device, plan)
    details = {
        "real rows/s": real, "τ₀ ms": 1e3 * device.fixed_s, "α ms": 1e3 * device.row_s, "overhead ms": 1e3 * overhead_s,
        "client CPU %": 100 * busiest,
    }  # fmt: skip
    void = f"the client took {100 * busiest:.0f} % of a core" if busiest > BUSY else ""
    what = f"knee of a real server, batches ≤ {largest}, deadline {1e3 * DEADLINE_S:g} ms"
    rows = [
        Row(part="knee", what=f"{what}: {who} is off", value=100 * abs(said / real - 1), unit="% of it", at_most=25,
            details={"rows/s": said} | details)
        for who, said in (("the formula", expected), ("the simulator", simulated))
    ]  # fmt: skip
    return [msgspec.structs.replace(row, void=void) for row in rows]


def _target(url: str, key: str, rows: int, within_s: float) -> HttpTarget:
    body = orjson.loads(models.json_body(np.ones((rows, 4), np.float32)))
    hurried = orjson.dumps(body | {"parameters": {"timeout": int(within_s * 1e6)}})
    return HttpTarget(url, hurried, {"Authorization": f"Bearer {key}"})


def _calibrated(url: str, key: str, largest: int, plan: Plan) -> tuple[Device, float]:
    """The device as it is here, and seconds that the way to it and back take: medians of each size, asked alone."""
    sizes = [1 << k for k in range(largest.bit_length())]
    runs = 5 if plan.quick else 20
    computed, overheads = [], []
    for rows in sizes:
        target = _target(url, key, rows, 10.0)
        before = _computed(url, key, rows)
        answers = [uvloop.run(offer(target, 1e6, 1e-7, connections=1)).answers[0] for _ in range(runs)]
        after = _computed(url, key, rows)
        took = (after[1] - before[1]) / max(1, after[0] - before[0])
        computed.append((rows, int(took)))
        overheads.append(percentile([answer.latency for answer in answers], 0.5) - took / 1e9)
    fixed, row = affine(computed)
    return Device(fixed / 1e9, row / 1e9, largest), max(0.0, percentile(overheads, 0.5))


def _computed(url: str, key: str, rows: int) -> tuple[int, int]:
    """How many batches of so many rows have run, and the nanoseconds that they took, by the server's statistics."""
    stats = url.rsplit("/", 1)[0] + "/stats"
    request = urllib.request.Request(stats, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        (model,) = orjson.loads(response.read())["model_stats"]
    for batch in model["batch_stats"]:
        if batch["batch_size"] == rows:
            return batch["compute_infer"]["count"], batch["compute_infer"]["ns"]
    return 0, 0


def _found(url: str, key: str, device: Device, plan: Plan) -> tuple[float, float]:
    """Rows a second up to which 99 % are answered in time, and the most of a core that the client took."""
    target, busiest = _target(url, key, 1, DEADLINE_S), 0.0
    low, high = 0.2, 1.2
    for _ in range(4 if plan.quick else 6):
        middle = (low + high) / 2
        kept, cpu = zip(*(_kept(target, middle * device.limit, plan, seed) for seed in range(TRIES)), strict=True)
        busiest = max(busiest, *cpu)
        if max(kept) >= knee.KEPT:
            low = middle
        else:
            high = middle
    return (low + high) / 2 * device.limit, busiest


def _kept(target: HttpTarget, rate: float, plan: Plan, seed: int) -> tuple[float, float]:
    """The share answered in time, and of a core that the client took."""
    offered = uvloop.run(offer(target, rate, 3 if plan.quick else 10, seed=seed))
    in_time = sum(answer.status == 200 and answer.latency <= DEADLINE_S for answer in offered.answers)
    return in_time / len(offered.answers), offered.client_cpu
