"""A batch that nobody serves any more: its members go to what their names stand for now, and each has one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from core.datatypes import Buffer
from core.errors import DeadlineExceeded, InvalidRequest, NotFound, NotReady, PenstockError
from core.settings import Settings
from gateway.dataplane import DataPlane
from gateway.hub import Hub
from gateway.routes import Routes
from gateway.transports.base import Transport
from gateway.transports.fake import Fake
from repository.catalog import catalog
from repository.records import Alias, Signature, TensorSpec
from tests.gateway.asked import Asked
from tests.gateway.grpc_running import verifier, version
from tests.gateway.transports.replicas import hub_at, replica_at, until
from workers.messages import Cancel

FOUR = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("x", "FP32", (-1, 4)),))
ROW: Buffer = bytes(16)


class Site(NamedTuple):
    plane: DataPlane
    routes: Routes
    key: str

    def ask(self, named: str = "", within_s: float = 30.0) -> Asked:
        asked = Asked(self.key, named, within_s)
        self.plane.infer(asked)
        return asked

    async def open(self, number: int, transport: Transport | None = None, **changes: Any) -> Fake:
        """Version `number`, which says nothing before it is told to."""
        fake = Fake(window=8, automatic=False)
        await self.routes.open(version(number=number, **changes), transport or fake)
        return fake

    def know(self, *numbers: int, **aliases: int) -> None:
        versions = [version(number=number) for number in numbers]
        named = [Alias(model="echo", alias=alias, version=number) for alias, number in aliases.items()]
        self.routes.refresh(catalog(1, versions, [], named))

    def failures(self, number: int) -> int:
        route = self.routes._open["echo", number]
        return route.statistics.fail.count


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    checker, keys = verifier()
    settings = Settings(drain_timeout_s=0.1)
    routes = Routes(settings)
    yield Site(DataPlane(checker, routes, settings), routes, keys.predict)
    await routes.close()


async def turn() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("named", ["", "stable"])
async def test_by_model_or_alias_the_new_version_answers(site: Site, named: str) -> None:
    """A request that raced with an update never hears of it; the version that is gone counts no failure."""
    first = await site.open(1)
    site.know(1, stable=1)
    asked = site.ask(named)
    await turn()
    second = await site.open(2)
    site.know(1, 2, stable=2)
    first.unserve()
    await turn()
    second.complete()
    assert asked.told == ["2"]
    assert asked.entry is None
    assert (site.failures(1), site.failures(2)) == (0, 0)
    assert site.routes.pending == 0


async def test_by_number_it_is_not_ready(site: Site) -> None:
    """That version was asked for, and no other will do; its neighbours go their way."""
    first = await site.open(1)
    site.know(1)
    by_number, by_model = site.ask("1"), site.ask()
    await turn()
    second = await site.open(2)
    first.unserve()
    await turn()
    second.complete()
    assert [type(told) for told in by_number.told] == [NotReady]
    assert by_model.told == ["2"]
    assert len(first.sent) == len(second.sent) == 1


async def test_where_the_name_stands_for_it_still_it_is_not_ready(site: Site) -> None:
    first = await site.open(1)
    site.know(1)
    asked = site.ask()
    await turn()
    first.unserve()
    assert [type(told) for told in asked.told] == [NotReady]
    assert len(first.sent) == 1


async def test_once(site: Site) -> None:
    """A second update in a row is the caller's business again."""
    first = await site.open(1)
    asked = site.ask()
    await turn()
    second = await site.open(2)
    first.unserve()
    await turn()
    third = await site.open(3)
    second.unserve()
    await turn()
    assert [type(told) for told in asked.told] == [NotReady]
    assert third.sent == []


@pytest.mark.parametrize("moved", [False, True])
async def test_who_leaves_is_not_answered(site: Site, moved: bool) -> None:
    """Before the batch came back, or aboard of the new version's, which is told."""
    first = await site.open(1)
    leaver, stayer = site.ask(), site.ask()
    await turn()
    second = await site.open(2)
    if not moved:
        site.plane.cancel(leaver)
    first.unserve()
    await turn()
    if moved:
        site.plane.cancel(leaver)
    assert [len(batch.members) for batch in second.sent] == [2 if moved else 1]
    assert second.cancelled == ([Cancel(second.sent[0].id, [0])] if moved else [])
    second.complete()
    assert leaver.told == []
    assert stayer.told == ["2"]
    assert site.routes.pending == 0


async def test_its_deadline_stays(site: Site) -> None:
    """Who is late when the batch comes back, or on the second way, hears so, once."""
    first = await site.open(1)
    late, patient = site.ask(within_s=0.05), site.ask()
    await turn()
    second = await site.open(2)
    first.unserve()
    await turn()
    await until(lambda: late.told)
    assert [type(told) for told in late.told] == [DeadlineExceeded]
    assert time.monotonic_ns() >= late.deadline
    second.complete()
    assert patient.told == ["2"]
    assert len(late.told) == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"signature": Signature((TensorSpec("z", "FP32", (-1, 4)),), ())}, InvalidRequest),
        ({"queue_bound": 1}, PenstockError),
    ],
)
async def test_what_the_new_version_refuses_is_refused(
    site: Site, changes: dict[str, Any], error: type[PenstockError]
) -> None:
    """With its reason: other inputs, a full queue."""
    first = await site.open(1)
    asked = [site.ask() for _ in range(3)]
    await turn()
    await site.open(2, **changes)
    first.unserve()
    refused = [each for each in asked if each.told]
    assert len(refused) == (3 if error is InvalidRequest else 2)
    assert all(isinstance(each.told[0], error) and len(each.told) == 1 for each in refused)
    assert all(each.entry is None for each in refused)


async def test_a_model_that_is_gone_is_not_found(site: Site) -> None:
    first = await site.open(1)
    asked = site.ask()
    await turn()
    site.routes._open.clear()
    site.know()
    first.unserve()
    assert [type(told) for told in asked.told] == [NotFound]


async def test_over_the_broker(site: Site, amqp_url: str) -> None:
    """The old version's queue is gone, as this gateway is the last to learn: it looks, and the new one answers."""
    one, two = version(number=1), version(number=2)
    told: list[None] = []

    def changed() -> None:
        """The repository is looked at, and names the new version."""
        told.append(None)
        site.routes.refresh(catalog(2, [one, two], [], [Alias(model="echo", alias="champion", version=2)]))

    async with replica_at(amqp_url, one) as old, replica_at(amqp_url, two), hub_at(amqp_url, None, changed) as hub:
        await opened(site, hub)
        site.know(1, 2, champion=1)
        await old.channel.queue_delete("infer.echo.1")
        asked, by_number = site.ask(), site.ask("1")
        await until(lambda: asked.told and by_number.told)
        assert asked.told == ["2"]
        assert [type(each) for each in by_number.told] == [NotReady]
        assert told
        await site.routes.close()


async def opened(site: Site, hub: Hub) -> None:
    for number in (1, 2):
        transport = hub.transport(version(number=number))
        await until(lambda transport=transport: transport.window)  # type: ignore[misc]
        await site.open(number, transport)
