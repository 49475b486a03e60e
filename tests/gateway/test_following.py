"""Routes follow the repository's states and the replicas' beats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from core.errors import NotReady
from core.identity import ADMIN, Principal
from core.settings import Settings
from gateway.following import Following, plan
from gateway.routes import Routes
from gateway.routing import Key
from gateway.transports.fake import Fake
from repository.catalog import Catalog, catalog
from repository.records import LOADING, READY, UNAVAILABLE, UNLOADING, Version
from tests.repository.scripted import a_state, a_version

ANYBODY = Principal("k", "n", "o", ADMIN)


def of(**states: str) -> Catalog:
    """Versions of model `m` by number, each in its state: `of(v1=READY)`."""
    numbers = {int(name[1:]): state for name, state in states.items()}
    return catalog(1, [a_version("m", n) for n in numbers], [a_state("m", n, s) for n, s in numbers.items()])


@pytest.mark.parametrize(
    ("known", "opened", "opens", "retires"),
    [
        (of(v1=READY), set(), [1], []),
        (of(v1=READY), {("m", 1)}, [], []),
        (of(v1=READY, v2=LOADING), {("m", 1)}, [], []),
        (of(v1=READY, v2=READY), {("m", 1)}, [2], []),
        (of(v1=UNLOADING, v2=READY), {("m", 1), ("m", 2)}, [], [1]),
        (of(v1=UNAVAILABLE), {("m", 1)}, [], [1]),
        (Catalog(), {("m", 1)}, [], [1]),
    ],
)
def test_the_plan(known: Catalog, opened: set[Key], opens: list[int], retires: list[int]) -> None:
    """READY opens, anything else closes."""
    to_open, to_retire = plan(known, opened)
    assert [version.version for version in to_open] == opens
    assert [number for _, number in to_retire] == retires


class Site:
    """Following over fakes; `alive`: versions with a ready replica."""

    def __init__(self) -> None:
        self.alive = {("m", 1), ("m", 2)}
        self.fakes: dict[Key, Fake] = {}
        self.routes = Routes(Settings(drain_timeout_s=5.0))
        self.following = Following(self.routes, self._transport, lambda *key: key in self.alive)

    def _transport(self, version: Version) -> Fake:
        fake = self.fakes[version.model, version.version] = Fake()
        return fake

    async def say(self, known: Catalog, until: Callable[[], bool]) -> None:
        self.routes.refresh(known)
        self.following.changed(known)
        await reached(until)

    def serves(self, version: str) -> bool:
        try:
            self.routes.table.resolve("m", version, ANYBODY)
        except NotReady:
            return False
        return True


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def site() -> Site:
    return Site()


async def test_a_new_version_takes_over(site: Site) -> None:
    """Open beside the old one, which goes when its state says so; its transport is closed once drained."""
    await site.say(of(v1=READY), lambda: site.serves(""))
    await site.say(of(v1=READY, v2=READY), lambda: site.serves("2"))
    assert site.routes.table.resolve("m", "", ANYBODY).number == "2"
    await site.say(of(v1=UNLOADING, v2=READY), lambda: not site.serves("1"))
    await reached(lambda: site.fakes["m", 1].closed)
    assert [share.version for share in site.routes.shares(0)] == [2]


async def test_what_drains_is_still_named(site: Site) -> None:
    """The worker side must not let go of it before."""
    site.fakes = {}
    await site.say(of(v1=READY), lambda: site.serves("1"))
    gate = asyncio.Event()
    fake = site.fakes["m", 1]
    closing = fake.close

    async def slowly() -> None:
        await gate.wait()
        await closing()

    fake.close = slowly  # type: ignore[method-assign]
    await site.say(of(v1=UNLOADING), lambda: not site.serves("1"))
    assert [share.version for share in site.routes.shares(0)] == [1]
    gate.set()
    await reached(lambda: not site.routes.shares(0))


async def test_a_version_that_nobody_serves_is_not_ready_and_comes_back(site: Site) -> None:
    """By beats alone: the repository says READY all the time."""
    await site.say(of(v1=READY), lambda: site.serves("1"))
    site.alive = set()
    site.following.beats()
    assert not site.serves("1")
    assert site.following.waiting() == [("m", 1)]
    site.alive = {("m", 1)}
    site.following.beats()
    assert site.serves("1")
    assert not site.following.waiting()


async def test_a_version_that_returns_while_it_drains_is_opened_again(site: Site) -> None:
    """Unloaded and loaded in quick succession."""
    await site.say(of(v1=READY), lambda: site.serves("1"))
    first = site.fakes["m", 1]
    site.routes.refresh(of(v1=UNLOADING))
    site.following.changed(of(v1=UNLOADING))
    await site.say(of(v1=READY), lambda: site.fakes["m", 1] is not first and site.serves("1"))
    assert first.closed


async def test_a_version_is_opened_when_somebody_serves_it(site: Site) -> None:
    """Not before: its batcher is to know what the warm-up took."""
    site.alive = set()
    await site.say(of(v1=READY), lambda: True)
    assert site.routes.opened() == []
    site.alive = {("m", 1)}
    site.following.beats()
    await reached(lambda: site.serves("1"))
