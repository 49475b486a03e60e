"""What a gateway counts of its requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from prometheus_client.core import Metric

from core.errors import ModelFailed, PenstockError
from core.settings import Settings
from gateway import meters
from gateway.dataplane import DataPlane
from gateway.meters import Meters
from gateway.routes import Routes
from gateway.transports.fake import Fake
from repository.catalog import catalog
from tests.gateway.asked import Asked
from tests.gateway.grpc_running import verifier, version
from tests.gateway.transports.replicas import until


class Called(Asked):
    __slots__ = ()
    transport = "grpc"


class Site:
    def __init__(self) -> None:
        self.transport = Fake(automatic=False, window=8)
        self.routes = Routes(Settings())
        checker, self.keys = verifier()
        self.plane = DataPlane(checker, self.routes, Settings())

    async def open(self) -> None:
        self.routes.refresh(catalog(1, [version()], [], []))
        await self.routes.open(version(), self.transport)
        self.routes.recorder.meters.watch(self.routes.working, lambda: 3)

    def ask(self, kind: type[Asked] = Asked, key: str = "", model: str = "echo") -> Asked:
        asked = kind(key or self.keys.predict, model=model)
        self.plane.infer(asked)
        return asked


@pytest.fixture
async def site() -> Site:
    site = Site()
    await site.open()
    return site


def values(families: Iterator[Metric], **labels: str) -> dict[str, float]:
    """Samples with these labels: name → value."""
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if labels.items() <= sample.labels.items() and "le" not in sample.labels
    }


def told(site: Site, **labels: str) -> dict[str, float]:
    return values(iter(list(site.routes.recorder.meters.collect())), **labels)


async def test_answers_are_counted_by_stage_transport_and_tenant(site: Site) -> None:
    asked = [site.ask(), site.ask(Called), site.ask(key=site.keys.deploy)]
    await until(lambda: bool(site.transport.waiting))
    site.transport.complete()
    assert [each.told for each in asked] == [["1"]] * 3
    assert told(site, outcome="ok", model="echo", version="1")["penstock_requests_total"] == 3
    duration = "penstock_request_duration_seconds"
    for stage, transport, count in (
        ("wait", "", 3),
        ("queue", "", 3),
        ("compute", "", 3),
        ("total", "rest", 2),
        ("total", "grpc", 1),
    ):
        found = told(site, stage=stage, transport=transport)
        assert found[f"{duration}_count"] == count, stage
    waited, total = told(site, stage="wait"), told(site, stage="total", transport="rest")
    assert 0 < waited[f"{duration}_sum"] < 10
    assert total[f"{duration}_sum"] < 10
    assert told(site, tenant="predict", outcome="ok")["penstock_tenant_requests_total"] == 2
    assert told(site, tenant="deploy", outcome="ok")["penstock_tenant_requests_total"] == 1
    assert told(site, model="echo", version="1")["penstock_batch_rows_sum"] == 3


async def test_what_has_no_answer_is_counted_by_its_reason(site: Site) -> None:
    site.ask()
    await until(lambda: bool(site.transport.waiting))
    site.transport.fail(ModelFailed("it raised"))
    site.ask(model="none")
    with suppress(PenstockError):
        site.ask(key="wrong")
    gone = site.ask()
    await until(lambda: bool(site.transport.waiting))
    site.plane.cancel(gone)
    assert told(site, outcome="failed", model="echo")["penstock_requests_total"] == 1
    assert told(site, reason="model_failed")["penstock_refusals_total"] == 1
    assert told(site, reason="not_found")["penstock_unrouted_requests_total"] == 1
    assert told(site, reason="unauthenticated")["penstock_unrouted_requests_total"] == 1
    assert told(site, outcome="cancelled", model="echo")["penstock_requests_total"] == 1


async def test_a_version_that_nobody_serves_counts_what_it_cannot_answer(site: Site) -> None:
    """So that an outage of a model burns that model's budget."""
    site.routes.shut({("echo", 1)})
    site.ask()
    assert told(site, outcome="refused", model="echo", version="")["penstock_requests_total"] == 1


async def test_who_leaves_when_the_deadline_passes_was_late(site: Site) -> None:
    """A transport that knows the deadline ends the request itself, a moment before the batcher would."""
    site.transport.window = 0
    asked = Called(site.keys.predict)
    asked.deadline = time.monotonic_ns() + 10**10
    site.plane.infer(asked)
    asked.deadline = time.monotonic_ns() + 1_000_000
    site.plane.cancel(asked)
    assert told(site, outcome="late", model="echo")["penstock_requests_total"] == 1


async def test_what_is_under_way_is_told_as_it_is(site: Site) -> None:
    site.transport.window = 0
    for _ in range(3):
        site.ask()
    await asyncio.sleep(0.01)
    found = told(site, model="echo")
    assert found["penstock_queue_rows"] == 3
    assert found["penstock_in_flight_requests"] == 3
    assert 0.005 < found["penstock_queue_oldest_seconds"] < 10
    assert found["penstock_replicas"] == 1
    assert told(site)["penstock_http_connections"] == 3


async def test_from_another_thread_the_loop_is_asked(site: Site) -> None:
    site.ask()
    found = await asyncio.to_thread(told, site, model="echo")
    assert found["penstock_in_flight_requests"] == 1


async def test_a_loop_that_is_stuck_keeps_no_scrape_waiting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "PATIENCE_S", 0.05)
    scrape = asyncio.get_running_loop().run_in_executor(None, told, site)
    time.sleep(2)
    found = await scrape
    assert "penstock_queue_rows" not in found
    assert "penstock_http_connections" in found


async def test_a_version_that_is_opened_again_counts_on(site: Site) -> None:
    site.ask()
    await until(lambda: bool(site.transport.waiting))
    site.transport.complete()
    await site.routes.retire("echo", 1)
    assert told(site, outcome="ok", model="echo")["penstock_requests_total"] == 1
    await site.routes.open(version(), Fake())
    site.ask()
    await until(lambda: told(site, outcome="ok", model="echo")["penstock_requests_total"] == 2)


def test_counts_are_kept_of_so_many_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "VERSIONS", 2)
    kept = Meters((1, 2))
    first = kept.version("m", "1")
    kept.version("m", "2")
    assert kept.version("m", "1") is first
    kept.version("m", "3")
    assert list(kept._versions) == [("m", "1"), ("m", "3")]
