"""The spans of a request at the gateway: which requests have some, which those are, and that they are its times."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from core.errors import InvalidRequest, ModelFailed
from core.settings import Settings
from core.trace import Caller, Context, Sampling
from gateway import tracing
from gateway.dataplane import DataPlane
from gateway.exchange import Exchange, InferRequest
from gateway.fit import Mould
from gateway.routes import Routes
from gateway.tracing import Sampled, Tracer, hashed
from gateway.transports.fake import Fake
from repository.catalog import catalog
from tests.gateway.asked import Asked
from tests.gateway.grpc_running import verifier, version
from tests.gateway.transports.replicas import until
from tests.kept_spans import Kept
from workers.messages import Batch, Reply, Timing

MS = 1_000_000
ORIGIN = Context(0xA, 0xB, True, "vendor=1")


class Bad(Asked):
    __slots__ = ()

    def decode(self, mould: Mould) -> InferRequest:
        raise InvalidRequest("nonsense")


class Site(NamedTuple):
    plane: DataPlane
    routes: Routes
    spans: Kept
    transport: Fake
    key: str

    def ask(self, origin: Context | None = None, kind: type[Asked] = Asked, model: str = "echo") -> Asked:
        asked = kind(self.key, within_s=10.0, model=model, caller=Caller(origin, "mine"))
        self.plane.infer(asked)
        return asked


@asynccontextmanager
async def site(sampling: Sampling) -> AsyncIterator[Site]:
    spans, transport = Kept(), Fake(automatic=False)
    routes = Routes(Settings(), Tracer(spans, sampling))
    keys, secrets = verifier()
    routes.refresh(catalog(1, [version()], [], []))
    await routes.open(version(), transport)
    try:
        yield Site(DataPlane(keys, routes, Settings()), routes, spans, transport, secrets.predict)
    finally:
        transport.lose()
        await routes.close(0.1)


async def answered(here: Site, timing: Timing | None = None) -> Batch:
    """Let the batch that waits be answered, with these times of its worker."""
    await until(lambda: bool(here.transport.waiting))
    batch, done = next(iter(here.transport.waiting.values()))
    if timing is None:
        here.transport.complete()
    else:
        here.transport.waiting.clear()
        results = [list(result) if isinstance(result, list) else result for result in here.transport._compute(batch)]
        done(Reply(batch.id, results, timing))
    return batch


async def test_a_sampled_request_is_told_of_stage_by_stage() -> None:
    async with site(Sampling(1.0)) as here:
        asked = here.ask(ORIGIN)
        began = time.monotonic_ns()
        batch = await answered(
            here, Timing(5, 1 * MS, 2 * MS, 1 * MS, 1, 1, began, 1, (0xA << 64 | 0xE).to_bytes(24, "big"), began)
        )
        assert asked.told == ["1"]
        (trace,) = here.spans.traces
    server = trace["POST /v2/models/{model}/infer"]
    assert server.context is not None
    assert server.parent is not None
    assert (server.context.trace_id, server.parent.span_id, server.kind) == (0xA, 0xB, SpanKind.SERVER)
    assert server.context.trace_state.get("vendor") == "1"
    attributes = dict(server.attributes or {})
    assert attributes["penstock.model"] == "echo"
    assert attributes["penstock.version"] == "1"
    assert attributes["penstock.tenant"] == hashed("predict") != "predict"
    assert attributes["penstock.outcome"] == "ok"
    assert attributes["penstock.request_id"] == "mine"
    assert attributes["http.response.status_code"] == 200
    assert 0 < float(str(attributes["penstock.deadline_left_ms"])) < 10_000
    stages = [trace[name] for name in ("admission", "batch wait", "publish", "queue", "compute", "reply")]
    for stage in stages:
        assert stage.parent is not None
        assert stage.parent.span_id == server.context.span_id
    assert len(trace) == len(stages) + 1
    times = [time for stage in stages for time in (stage.start_time or 0, stage.end_time or 0)]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (server.start_time, server.end_time)
    compute = trace["compute"]
    assert (compute.end_time or 0) - (compute.start_time or 0) == 4 * MS or compute.end_time == server.end_time
    assert [link.context.span_id for link in compute.links] == [0xE]
    assert batch.context is not None
    assert trace["publish"].context is not None
    assert trace["publish"].context.span_id == batch.context.span_id
    assert trace["compute"].context is not None
    assert batch.members[0].trace == (0xA << 64 | trace["compute"].context.span_id).to_bytes(24, "big")


async def test_of_a_request_that_is_not_sampled_nothing_is_made() -> None:
    async with site(Sampling(0.0)) as here:
        here.ask()
        here.ask(ORIGIN._replace(sampled=False))
        batch = await answered(here)
        assert here.spans.traces == []
        assert batch.context is None
        assert all(member.trace == b"" for member in batch.members)


async def test_one_that_fails_is_told_of_all_the_same() -> None:
    """From the times that were taken of it as of any other."""
    async with site(Sampling(0.0)) as here:
        asked = here.ask()
        await until(lambda: bool(here.transport.waiting))
        here.transport.fail(ModelFailed("it raised"))
        assert isinstance(asked.told[0], ModelFailed)
        (trace,) = here.spans.traces
    server = trace["POST /v2/models/{model}/infer"]
    attributes = dict(server.attributes or {})
    assert (attributes["error.type"], attributes["penstock.outcome"]) == ("model_failed", "failed")
    assert attributes["penstock.sampled_for"] == "failure"
    assert attributes["http.response.status_code"] == 500
    assert server.status.status_code is StatusCode.ERROR
    assert {"admission", "batch wait", "publish", "queue"} < set(trace)


async def test_an_outage_is_not_told_of_request_by_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FAILURES_PER_S", 3)
    monkeypatch.setattr(tracing, "SECOND", 10**18)
    async with site(Sampling(0.0)) as here:
        for _ in range(6):
            here.ask()
        await until(lambda: bool(here.transport.waiting))
        while here.transport.waiting:
            here.transport.fail(ModelFailed("it raised"))
            await until(lambda: not here.routes.pending or bool(here.transport.waiting))
        assert len(here.spans.traces) == 3


async def test_a_refusal_is_told_of_where_its_caller_traces() -> None:
    """It has no batch; unasked a refusal is not told of: there may be very many."""
    async with site(Sampling(0.0)) as here:
        here.ask(kind=Bad)
        here.ask(model="unknown")
        assert here.spans.traces == []
        here.ask(ORIGIN, kind=Bad)
        here.ask(ORIGIN, model="unknown")
        refused, unrouted = here.spans.traces
    for trace, code in ((refused, 400), (unrouted, 404)):
        server = trace["POST /v2/models/{model}/infer"]
        assert (server.attributes or {})["http.response.status_code"] == code
        assert server.status.status_code is StatusCode.UNSET  # the caller's fault
        assert set(trace) == {"POST /v2/models/{model}/infer", "admission"}


async def test_a_client_that_leaves_has_a_whole_trace() -> None:
    async with site(Sampling(1.0)) as here:
        asked = here.ask(ORIGIN)
        await until(lambda: bool(here.transport.waiting))
        here.plane.cancel(asked)
        (trace,) = here.spans.traces
        await answered(here)
        assert len(here.spans.traces) == 1
    assert (trace["POST /v2/models/{model}/infer"].attributes or {})["penstock.outcome"] == "cancelled"
    assert "publish" in trace  # what the execution belongs under


class TestSampling:
    """Which requests are taken, by what decides."""

    def asked(self, trace_id: int, origin: Context | None = None, at: int = 0) -> Exchange:
        exchange = Exchange("m", "", None, 0, Caller(origin))
        exchange.trace_id, exchange.received = trace_id, at
        return exchange

    @pytest.mark.parametrize(
        ("sampling", "trace_id", "origin", "why"),
        [
            (Sampling(0.5), (1 << 63) - 1, None, "ratio"),
            (Sampling(0.5), 1 << 63, None, ""),
            (Sampling(0.5), 7 << 64 | 5, None, "ratio"),
            (Sampling(0.0), 5, None, ""),
            (Sampling(1.0), (1 << 128) - 1, None, "ratio"),
            (Sampling(0.0), 5, ORIGIN, "parent"),
            (Sampling(1.0), 5, ORIGIN._replace(sampled=False), ""),
            (Sampling(0.0, parent_based=False), 5, ORIGIN, ""),
            (Sampling(1.0, parent_based=False), 5, ORIGIN._replace(sampled=False), "ratio"),
            (Sampling(0.0, by_model={"m": 1.0}), 5, None, "ratio"),
            (Sampling(1.0, by_model={"m": 0.0}), 5, None, ""),
        ],
    )
    def test_by_parent_model_and_ratio(
        self, sampling: Sampling, trace_id: int, origin: Context | None, why: str
    ) -> None:
        assert Sampled(sampling, "m").why(self.asked(trace_id, origin)) == why

    def test_a_model_that_is_seldom_asked_is_seen_once_a_second(self) -> None:
        sampled = Sampled(Sampling(0.01, floor=True), "m")
        none = (1 << 64) - 1
        second = 1_000_000_000
        found = [sampled.why(self.asked(none, at=second * at // 4)) for at in range(1, 10)]
        assert found == ["floor", "", "", "", "floor", "", "", "", "floor"]

    def test_a_ratio_of_nothing_has_no_floor(self) -> None:
        assert Sampled(Sampling(0.0, floor=True), "m").why(self.asked(1, at=10**10)) == ""
