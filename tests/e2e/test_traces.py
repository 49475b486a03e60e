"""One trace from client to model and back, through broker and batch, as Jaeger tells of it; metrics as Prometheus does.

The production shape, its servers real: gateways and replicas are processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tomllib
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import httpx
import numpy as np
import penstock
import pytest
import tritonclient.grpc.aio as triton
from penstock.client import Client

from tests.production import Production, push_numbered, settled, waited
from tests.running import RunningServer

STAGES = ["admission", "batch wait", "publish", "queue", "compute", "reply"]
REST_SPAN, GRPC_SPAN = "POST /v2/models/{model}/infer", "inference.GRPCInferenceService/ModelInfer"
MODEL = "traced"
ROUNDED = 1
"""Microseconds: Jaeger cuts a start and a duration off there, each by itself."""


class Span(NamedTuple):
    name: str
    span_id: str
    parent: str
    """'': of another process's, or none."""
    links: frozenset[tuple[str, str]]
    service: str
    start: int
    end: int
    tags: dict[str, Any]


class Watched:
    """What Jaeger and Prometheus know of the production shape."""

    def __init__(self, server: RunningServer) -> None:
        told = tomllib.loads((server.home / "client.toml").read_text())
        self._jaeger, self._prometheus = told["jaeger"], told["prometheus"]

    def trace(self, trace_id: str) -> list[Span]:
        """In the order of their start."""
        try:
            found = _get(f"{self._jaeger}/api/traces/{trace_id}")["data"][0]
        except urllib.error.HTTPError:
            return []
        return sorted((_span(span, found["processes"]) for span in found["spans"]), key=lambda span: span.start)

    def value(self, expression: str) -> float:
        """Of an expression that yields one value; 0 where it yields none."""
        query = urllib.parse.urlencode({"query": expression})
        rows = _get(f"{self._prometheus}/api/v1/query?{query}")["data"]["result"]
        return float(rows[0]["value"][1]) if rows else 0.0

    def targets(self) -> Counter[tuple[str, str]]:
        """(process, health) → how many."""
        targets = _get(f"{self._prometheus}/api/v1/targets?state=active")["data"]["activeTargets"]
        return Counter((target["labels"]["process"], target["health"]) for target in targets)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _span(told: dict[str, Any], processes: dict[str, Any]) -> Span:
    references = told["references"]
    return Span(
        told["operationName"],
        told["spanID"],
        next((each["spanID"] for each in references if each["refType"] == "CHILD_OF"), ""),
        frozenset((each["traceID"], each["spanID"]) for each in references if each["refType"] == "FOLLOWS_FROM"),
        processes[told["processID"]]["serviceName"],
        told["startTime"],
        told["startTime"] + told["duration"],
        {tag["key"]: tag["value"] for tag in told["tags"]},
    )


@pytest.fixture(scope="module")
def ps(production: Production, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    server = production.server
    with settled(penstock.connect(server.url, control=server.control, api_key=server.api_key)) as client:
        push_numbered(client, tmp_path_factory.mktemp("traced"), MODEL, 5)
        yield client


@pytest.fixture
def watched(production: Production, ps: Client) -> Watched:
    return Watched(production.server)


Ask = Callable[[str, str], Coroutine[Any, Any, str]]
"""(trace id, parent's id) → the trace id that the answer named."""


@pytest.fixture
async def by_rest(production: Production) -> AsyncIterator[Ask]:
    server = production.server
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:

        async def ask(trace_id: str, parent: str) -> str:
            headers = {"x-api-key": server.api_key, "traceparent": f"00-{trace_id}-{parent}-01"}
            answer = await client.post(f"/v2/models/{MODEL}/infer", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            return str(answer.headers["x-trace-id"])

        yield ask


@pytest.fixture
async def by_grpc(production: Production) -> AsyncIterator[Ask]:
    server = production.server
    tensor = triton.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 1), np.float32))
    async with triton.InferenceServerClient(server.grpc) as client:

        async def ask(trace_id: str, parent: str) -> str:
            headers = {"x-api-key": server.api_key, "traceparent": f"00-{trace_id}-{parent}-01"}
            answer = await client.infer(MODEL, [tensor], headers=headers)
            assert answer.as_numpy("y") is not None
            return trace_id

        yield ask


def check(trace: list[Span], root: str, parent: str) -> None:
    """That nothing of a request's trace is missing, out of order, or an orphan."""
    by_name = {span.name: span for span in trace}
    server, batch = by_name[root], by_name[f"process {MODEL}"]
    assert [span.name for span in trace if span.name in STAGES] == STAGES or _ordered(by_name)
    assert server.parent == parent
    for stage in STAGES:
        assert by_name[stage].parent == server.span_id, stage
        assert by_name[stage].service == "penstock-gateway"
        assert server.start <= by_name[stage].start <= by_name[stage].end <= server.end + ROUNDED, stage
    assert batch.service == "penstock-worker"
    known = {span.span_id for span in trace}
    assert [span.name for span in trace if span.parent not in known and span is not server] == []
    assert by_name["publish"].tags["messaging.system"] == "rabbitmq"
    assert by_name["publish"].tags["messaging.destination.name"] == f"infer.{MODEL}.1"
    assert (server.tags["penstock.model"], server.tags["penstock.version"]) == (MODEL, "1")


def _ordered(by_name: dict[str, Span]) -> bool:
    """Stages that take less than a microsecond begin in the same one, in any order."""
    starts = [by_name[stage].start for stage in STAGES]
    return starts == sorted(starts)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
async def test_a_request_has_one_trace_from_client_to_model_and_back(
    transport: str, watched: Watched, request: pytest.FixtureRequest, by_rest: Ask, by_grpc: Ask
) -> None:
    ask, root = (by_rest, REST_SPAN) if transport == "rest" else (by_grpc, GRPC_SPAN)
    for _ in range(3):
        trace_id, parent = secrets.token_hex(16), secrets.token_hex(8)
        assert await ask(trace_id, parent) == trace_id
        await asyncio.to_thread(waited, lambda asked=trace_id: len(watched.trace(asked)) >= len(STAGES) + 2)
        trace = watched.trace(trace_id)
        if len(trace) == len(STAGES) + 2:  # a batch that a busy replica leaves lying is sent again, and shows twice
            break
    check(trace, root, parent)
    by_name = {span.name: span for span in trace}
    batch, compute = by_name[f"process {MODEL}"], by_name["compute"]
    assert batch.parent == by_name["publish"].span_id
    assert batch.links == {(trace_id, compute.span_id)}
    assert compute.links == {(trace_id, batch.span_id)}


async def test_a_batch_is_linked_with_every_member_both_ways(
    watched: Watched, production: Production, by_rest: Ask
) -> None:
    """Requests that come while the workers cannot be reached leave in one batch."""
    asked = {secrets.token_hex(16): secrets.token_hex(8) for _ in range(24)}
    production.way.hold()
    try:
        asking = [asyncio.create_task(by_rest(trace_id, parent)) for trace_id, parent in asked.items()]
        await asyncio.sleep(1.0)
    finally:
        production.way.mend()
    await asyncio.gather(*asking)
    await asyncio.to_thread(
        waited, lambda: all(any(span.name == "reply" for span in watched.trace(trace_id)) for trace_id in asked)
    )
    traces = {trace_id: watched.trace(trace_id) for trace_id in asked}
    computes = {
        (trace_id, span.span_id): span for trace_id, trace in traces.items() for span in trace if span.name == "compute"
    }
    assert len(computes) == len(asked)
    await asyncio.to_thread(waited, lambda: _linked(_batches(watched, asked)) >= set(computes))
    batches = _batches(watched, asked)
    assert _linked(batches) == set(computes)
    assert all(computes[link].links == {key} for key, batch in batches.items() for link in batch.links)
    assert max(len(batch.links) for batch in batches.values()) > 1
    for batch in batches.values():
        assert batch.tags["penstock.batch.members"] == len(batch.links)


def _linked(batches: dict[tuple[str, str], Span]) -> set[tuple[str, str]]:
    return {link for batch in batches.values() for link in batch.links}


def _batches(watched: Watched, asked: dict[str, str]) -> dict[tuple[str, str], Span]:
    """The executions' spans in these traces, by trace and span."""
    return {
        (trace_id, span.span_id): span
        for trace_id in asked
        for span in watched.trace(trace_id)
        if span.name == f"process {MODEL}"
    }


async def test_one_that_fails_has_its_trace(watched: Watched, production: Production) -> None:
    """A deadline that nothing can meet once it is accepted: the caller hears it, and so does Jaeger."""
    server = production.server
    body = {
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}],
    }
    trace_id = secrets.token_hex(16)
    headers = {"x-api-key": server.api_key, "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.post(f"/v2/models/{MODEL}/infer", json=body, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["x-trace-id"] == trace_id
    await asyncio.to_thread(waited, lambda: watched.trace(trace_id))
    server_span = next(span for span in watched.trace(trace_id) if span.name == REST_SPAN)
    assert server_span.tags["error.type"] == "invalid_request"
    assert server_span.tags["http.response.status_code"] == 400


async def test_prometheus_finds_every_process_and_what_they_count(
    watched: Watched, production: Production, by_rest: Ask
) -> None:
    for _ in range(3):
        await by_rest(secrets.token_hex(16), secrets.token_hex(8))
    expected = {"gateway": 2, "control": 1, "workers": 1}

    def found() -> bool:
        targets = watched.targets()
        up = {process: count for (process, health), count in targets.items() if health == "up"}
        return expected.items() <= up.items() and up.get("worker", 0) >= 3

    await asyncio.to_thread(waited, found)
    for expression in (
        f'sum(penstock_requests_total{{model="{MODEL}",outcome="ok"}})',
        f'sum(penstock_request_duration_seconds_count{{model="{MODEL}",stage="total",transport="rest"}})',
        f'sum(penstock_execution_seconds_count{{model="{MODEL}"}})',
        f'sum(penstock_replicas{{model="{MODEL}"}})',
        f'sum(penstock_deployed_replicas{{model="{MODEL}"}})',
        'sum(process_cpu_seconds_total{process="worker"})',
        'sum(penstock_spans_total{outcome="exported"})',
    ):
        await asyncio.to_thread(waited, partial(watched.value, expression))


def test_nothing_of_it_listens_beyond_loopback(production: Production) -> None:
    """A process that says where its metrics are says a place that only this machine can reach."""
    targets = []
    for file in (production.server.home / "metrics").glob("*.json"):
        with suppress(FileNotFoundError):  # it goes with its process
            (told,) = json.loads(file.read_text())
            targets += told["targets"]
    assert targets
    assert all(target.startswith("127.0.0.1:") for target in targets)
