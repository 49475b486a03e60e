"""Penstock with a 4×4 product, batched, beside the bare echo of the same protocol.

Both answer the same body at the same concurrency, in alternating rounds. A ratio is Penstock's figure by the echo's.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import models
from benchmarks.load import GrpcTarget, HttpTarget, Load, load_grpc, load_http
from benchmarks.processes import cpu_seconds, echo, penstock, push
from benchmarks.rows import Plan, Row, alternating, median, ratio
from tests.running import RunningServer

ONE = np.arange(4, dtype=np.float32).reshape(1, 4)
MAX_BATCH = "64"


class Side(NamedTuple):
    """One of the two: a load on it (callers, seconds), and the process that serves it."""

    run: Callable[[int, int], Load]
    pid: int


class Seen(NamedTuple):
    load: Load
    cpu_us: float
    """Of the server, for each request, in microseconds."""


class Contest(NamedTuple):
    """`at_least`: goal of the throughput ratio by concurrency, `p50_at_most`: of the p50 ratio at one caller."""

    part: str
    name: str
    unit: Side
    ours: Side
    at_least: dict[int, float]
    p50_at_most: float | None = None


def rest_json(plan: Plan) -> list[Row]:
    with _http_sides(models.json_body(ONE), {"Content-Type": "application/json"}) as (unit, ours):
        return _compare(Contest("rest-json", "REST JSON", unit, ours, {128: 1.5}, 2.5), plan)


def rest_binary(plan: Plan) -> list[Row]:
    with _http_sides(*models.binary_body(ONE)) as (unit, ours):
        return _compare(Contest("rest-binary", "REST binary", unit, ours, {}), plan)


def grpc(plan: Plan) -> list[Row]:
    """The unit is a bare grpc.aio server with the same proto."""
    with _grpc_sides(models.grpc_request("product", ONE)) as (unit, ours):
        return _compare(Contest("grpc", "gRPC", unit, ours, {32: 0.75}), plan)


@contextlib.contextmanager
def _http_sides(body: bytes, headers: dict[str, str]) -> Iterator[tuple[Side, Side]]:
    with echo("benchmarks.echo") as unit, penstock() as server:
        headers = headers | {"Authorization": f"Bearer {server.api_key}"}
        bare = HttpTarget(f"http://127.0.0.1:{unit.port}/v2/models/product/infer", body, headers)
        ours = HttpTarget(push_product(server), body, headers)
        yield Side(functools.partial(load_http, bare), unit.pid), Side(functools.partial(load_http, ours), server.pid)


@contextlib.contextmanager
def _grpc_sides(request: bytes) -> Iterator[tuple[Side, Side]]:
    with echo("benchmarks.grpc_echo") as unit, penstock() as server:
        push_product(server)
        credential = {"authorization": f"Bearer {server.api_key}"}
        bare = GrpcTarget(f"127.0.0.1:{unit.port}", request, credential)
        ours = GrpcTarget(server.grpc, request, credential)
        yield Side(functools.partial(load_grpc, bare), unit.pid), Side(functools.partial(load_grpc, ours), server.pid)


def push_product(server: RunningServer) -> str:
    with tempfile.TemporaryDirectory() as folder:
        artifact = models.product(Path(folder) / "product.onnx")
        return push(server, str(artifact), "product", "--max-batch", MAX_BATCH)


def _compare(contest: Contest, plan: Plan) -> list[Row]:
    return [row for callers in plan.concurrencies for row in _rows(contest, callers, _pairs(contest, callers, plan))]


def _pairs(contest: Contest, callers: int, plan: Plan) -> list[tuple[Seen, Seen]]:
    for side in (contest.unit, contest.ours):
        side.run(callers, 1)  # warm
    return alternating(
        plan.rounds,
        lambda: _seen(contest.unit, callers, plan.seconds),
        lambda: _seen(contest.ours, callers, plan.seconds),
    )


def _seen(side: Side, callers: int, seconds: int) -> Seen:
    before = cpu_seconds(side.pid)
    load = side.run(callers, seconds)
    return Seen(load, (cpu_seconds(side.pid) - before) / max(1, load.requests) * 1e6)


def _rows(contest: Contest, callers: int, pairs: list[tuple[Seen, Seen]]) -> list[Row]:
    """Throughput and p50 of one concurrency."""
    what = f"{contest.name}, c={callers}"
    bad = sum(seen.load.bad for pair in pairs for seen in pair)
    void = f"{bad} answers were not 2xx" if bad else ""
    throughput = [ratio(ours.load.rate, unit.load.rate) for unit, ours in pairs]
    latency = [ratio(ours.load.p50_ms, unit.load.p50_ms) for unit, ours in pairs]
    details = {
        "requests/s": median([ours.load.rate for _, ours in pairs]),
        "echo requests/s": median([unit.load.rate for unit, _ in pairs]),
        "server CPU µs/request": median([ours.cpu_us for _, ours in pairs]),
        "echo CPU µs/request": median([unit.cpu_us for unit, _ in pairs]),
    }
    delays = {
        "p50 ms": median([ours.load.p50_ms for _, ours in pairs]),
        "p99 ms": median([ours.load.p99_ms for _, ours in pairs]),
        "echo p50 ms": median([unit.load.p50_ms for unit, _ in pairs]),
        "echo p99 ms": median([unit.load.p99_ms for unit, _ in pairs]),
    }
    return [
        Row(
            part=contest.part,
            what=f"{what}: throughput",
            value=median(throughput),
            unit="echoes",
            at_least=contest.at_least.get(callers),
            rounds=throughput,
            details=details,
            void=void,
        ),
        Row(
            part=contest.part,
            what=f"{what}: p50",
            value=median(latency),
            unit="echo p50s",
            at_most=contest.p50_at_most if callers == 1 else None,
            rounds=latency,
            details=delays,
            void=void,
        ),
    ]
