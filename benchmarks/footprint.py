"""Memory of `up` with both sample models, and what a process of its own costs a model."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.load import HttpTarget, load_http
from benchmarks.processes import penstock, push, push_class, rss_bytes
from benchmarks.rows import Plan, Row, alternating, median, ratio
from tests.running import RunningServer, running

MIB = 1 << 20


def memory(_: Plan) -> list[Row]:
    """Resident memory when ready: at the first start, which trains, and at the second."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with running(home) as server:
            first = rss_bytes(server.pid)
        with running(home) as server:
            second = rss_bytes(server.pid)
    return [
        Row(
            part="memory",
            what="`up` with both samples, ready: resident memory",
            value=sum(second) / MIB,
            unit="MiB",
            details={"after the first start (trains)": sum(first) / MIB, "processes": len(second)},
        )
    ]


def child(plan: Plan) -> list[Row]:
    """The same 4×4 product as ONNX in the server's process, and as a Python class in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, penstock() as server:
        inside, outside = _push_both(server, Path(folder))
        body = models.json_body(np.ones((1, 4), np.float32))
        headers = {"Authorization": f"Bearer {server.api_key}"}
        near = functools.partial(load_http, HttpTarget(inside, body, headers))
        far = functools.partial(load_http, HttpTarget(outside, body, headers))
        rows = []
        for callers in plan.concurrencies:
            near(callers, 1), far(callers, 1)  # warm
            pairs = alternating(
                plan.rounds,
                functools.partial(near, callers, plan.seconds),
                functools.partial(far, callers, plan.seconds),
            )
            bad = sum(load.bad for pair in pairs for load in pair)
            ratios = [ratio(there.rate, here.rate) for here, there in pairs]
            rows.append(
                Row(
                    part="child",
                    what=f"Python class in a child process, c={callers}: throughput",
                    value=median(ratios),
                    unit="of the same product in-process",
                    rounds=ratios,
                    details={
                        "requests/s": median([there.rate for _, there in pairs]),
                        "in-process requests/s": median([here.rate for here, _ in pairs]),
                        "p50 ms": median([there.p50_ms for _, there in pairs]),
                        "in-process p50 ms": median([here.p50_ms for here, _ in pairs]),
                        "child MiB": sum(rss_bytes(server.pid)[1:]) / MIB,
                    },
                    void=f"{bad} answers were not 2xx" if bad else "",
                )
            )
    return rows


def _push_both(server: RunningServer, folder: Path) -> tuple[str, str]:
    inside = push(server, str(models.product(folder / "product.onnx")), "inside", "--max-batch", "64")
    return inside, push_class(server, folder, models.PYTHON_PRODUCT, "outside", 64)
