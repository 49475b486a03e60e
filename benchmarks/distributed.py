"""The production shape on this machine: broker, Ray, control plane, gateways and the load generator share its cores.

rest_json   the 4×4 product through RabbitMQ and a Ray Serve replica, beside the bare echo
image       588 KiB through the broker, one way and there and back, beside the same embedded
growth      the product's throughput with 1, 2 and 4 gateways, each with 1, 2 and 4 replicas
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from benchmarks import models
from benchmarks.against_echo import MAX_BATCH, ONE
from benchmarks.large import IMAGE, Caller
from benchmarks.load import HttpTarget, Load, load_http
from benchmarks.processes import cpu_seconds, echo, penstock, push
from benchmarks.rows import Plan, Row, alternating, median, ratio
from loadtests.http_client import http_request
from tests.running import COMMAND, RunningServer

GOALS = {32: 0.5, 128: 1.0}
P50_AT_MOST = 14.0
GROWTH = (1, 2, 4)
SETTLED_S = 90.0


class Cpu(NamedTuple):
    """Seconds that each kind of process has used so far."""

    gateways: float
    replicas: float
    broker: float
    ray: float
    """Its head with all that it has started, idle workers among them, but for the product's replicas."""
    control: float
    """The control plane and the workers' driver."""


class Shape:
    """A running production shape that serves the product at `url`."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        with tempfile.TemporaryDirectory() as folder:
            artifact = models.product(Path(folder) / "product.onnx")
            self.url = push(server, str(artifact), "product", "--max-batch", MAX_BATCH)
        self._broker, self._head = self._pid("rabbitmq"), self._pid("ray")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.server.api_key}"}

    def roots(self) -> list[int]:
        """Processes whose trees are the whole of it."""
        return [self.server.pid, self._broker, self._pid("mongo"), self._head]

    def replicas(self) -> list[int]:
        """Process ids of those of the product that serve."""
        status = httpx.get(f"{self.server.control}/api/v1/status", headers=self.headers, timeout=30).json()
        versions = [
            version for model in status["models"] if model["name"] == "product" for version in model["versions"]
        ]
        return [one["pid"] for version in versions for one in version["where"] if one["state"] == "READY"]

    def grow(self, replicas: int) -> None:
        words = ["--replicas", str(replicas), "--max-replicas", str(replicas)]
        command = [str(COMMAND), "deployments", "set", "product", *words]
        subprocess.run(command, env=self.server.environment, check=True, capture_output=True)
        deadline = time.monotonic() + SETTLED_S
        while len(self.replicas()) != replicas:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{replicas} replicas did not come")
            time.sleep(0.2)

    def cpu(self) -> Cpu:
        replicas = self.replicas()
        return Cpu(
            gateways=self._used(self._ours("server.gateway_process")),
            replicas=self._used(replicas),
            broker=self._used([self._broker]),
            ray=cpu_seconds(self._head) - self._used(replicas),
            control=self._used(self._ours("control") + self._ours("workers")),
        )

    def _used(self, processes: list[int]) -> float:
        return sum(map(cpu_seconds, processes))

    def _ours(self, word: str) -> list[int]:
        return [child.pid for child in psutil.Process(self.server.pid).children() if word in child.cmdline()]

    def _pid(self, service: str) -> int:
        environment = self.server.environment | {"PENSTOCK_HOME": str(self.server.home)}
        command = [str(COMMAND), "services", "status", "--only", service, "--json"]
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        return int(json.loads(told)[0]["pid"])


@contextlib.contextmanager
def shape(gateways: int = 1) -> Iterator[Shape]:
    with penstock("--distributed", gateways=str(gateways)) as server:
        yield Shape(server)


class Seen(NamedTuple):
    load: Load
    cpu: Cpu
    """Microseconds of each kind for a request."""


def rest_json(plan: Plan) -> list[Row]:
    """One gateway, one replica, identity on."""
    with echo("benchmarks.echo") as unit, shape() as ours:
        bare, target = _targets(unit.port, ours)
        return [row for callers in plan.concurrencies for row in _rows(plan, callers, bare, target, ours)]


def growth(plan: Plan) -> list[Row]:
    """Throughput at c=128 as gateways and replicas grow, beside the echo."""
    rows = []
    for gateways in GROWTH:
        with echo("benchmarks.echo") as unit, shape(gateways) as ours:
            bare, target = _targets(unit.port, ours)
            for replicas in GROWTH:
                ours.grow(replicas)
                row = _rows(plan, 128, bare, target, ours)[0]
                row.part, row.at_least = "distributed-growth", None
                row.what = f"gateways: {gateways}, replicas: {replicas}, c=128: throughput"
                rows.append(row)
    return rows


def image(plan: Plan) -> list[Row]:
    """The p50 of one caller whose request carries an image, and whose answer does not, or does as well."""
    with shape() as ours, penstock() as embedded:
        servers = (ours.server, embedded)
        one_way = _image_row(plan, "through the broker", [_image_caller(server, models.corner) for server in servers])
        return [
            one_way,
            _image_row(plan, "there and back", [_image_caller(server, models.whole) for server in servers]),
        ]


def _image_row(plan: Plan, how: str, callers: list[Caller]) -> Row:
    calls = 50 if plan.quick else 200
    through, beside = callers
    through.p50_ms(20), beside.p50_ms(20)  # warm
    pairs = alternating(plan.rounds, lambda: beside.p50_ms(calls), lambda: through.p50_ms(calls))
    bad = sum(caller.bad for caller in callers)
    ratios = [ratio(mine, unit) for unit, mine in pairs]
    return Row(
        part="distributed-image",
        what=f"1×3×224×224 FP32 {how}, c=1: p50",
        value=median(ratios),
        unit="of the same embedded",
        rounds=ratios,
        details={"p50 ms": median([mine for _, mine in pairs]), "embedded p50 ms": median([unit for unit, _ in pairs])},
        void=f"{bad} answers were not 2xx" if bad else "",
    )


def _image_caller(server: RunningServer, model: Callable[[Path], Path]) -> Caller:
    body, headers = models.binary_body(IMAGE)
    name = model.__name__
    with tempfile.TemporaryDirectory() as folder:
        url = push(server, str(model(Path(folder) / f"{name}.onnx")), name, "--max-batch", "8")
    request, host, port = http_request(url, body, headers | {"Authorization": f"Bearer {server.api_key}"})
    return Caller(host, port, request)


def _targets(port: int, ours: Shape) -> tuple[HttpTarget, HttpTarget]:
    body, headers = models.json_body(ONE), {"Content-Type": "application/json"} | ours.headers
    return HttpTarget(f"http://127.0.0.1:{port}/v2/models/product/infer", body, headers), HttpTarget(
        ours.url, body, headers
    )


def _rows(plan: Plan, callers: int, bare: HttpTarget, target: HttpTarget, ours: Shape) -> list[Row]:
    load_http(bare, callers, 1), load_http(target, callers, 2)  # warm
    pairs = alternating(
        plan.rounds, lambda: load_http(bare, callers, plan.seconds), lambda: _seen(target, callers, plan, ours)
    )
    bad = sum(unit.bad + seen.load.bad for unit, seen in pairs)
    void = f"{bad} answers were not 2xx" if bad else ""
    throughput = [ratio(seen.load.rate, unit.rate) for unit, seen in pairs]
    latency = [ratio(seen.load.p50_ms, unit.p50_ms) for unit, seen in pairs]
    what = f"RabbitMQ + Ray, REST JSON, c={callers}"
    details = {
        "requests/s": median([seen.load.rate for _, seen in pairs]),
        "echo requests/s": median([unit.rate for unit, _ in pairs]),
        "gateway CPU µs/request": median([seen.cpu.gateways for _, seen in pairs]),
        "replica CPU µs/request": median([seen.cpu.replicas for _, seen in pairs]),
        "broker CPU µs/request": median([seen.cpu.broker for _, seen in pairs]),
        "Ray CPU µs/request": median([seen.cpu.ray for _, seen in pairs]),
        "control CPU µs/request": median([seen.cpu.control for _, seen in pairs]),
    }
    delays = {
        "p50 ms": median([seen.load.p50_ms for _, seen in pairs]),
        "p99 ms": median([seen.load.p99_ms for _, seen in pairs]),
        "echo p50 ms": median([unit.p50_ms for unit, _ in pairs]),
    }
    return [
        Row(
            part="distributed",
            what=f"{what}: throughput",
            value=median(throughput),
            unit="echoes",
            at_least=GOALS.get(callers),
            rounds=throughput,
            details=details,
            void=void,
        ),
        Row(
            part="distributed",
            what=f"{what}: p50",
            value=median(latency),
            unit="echo p50s",
            at_most=P50_AT_MOST if callers == 1 else None,
            rounds=latency,
            details=delays,
            void=void,
        ),
    ]


def _seen(target: HttpTarget, callers: int, plan: Plan, ours: Shape) -> Seen:
    before = ours.cpu()
    load = load_http(target, callers, plan.seconds)
    after = ours.cpu()
    used = [1e6 * (new - old) / max(1, load.requests) for old, new in zip(before, after, strict=True)]
    return Seen(load, Cpu(*used))
