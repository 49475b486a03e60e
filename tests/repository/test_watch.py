"""The watch: fresh after a write, patient when the store is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from core.errors import Unavailable
from repository.records import Counter
from repository.store import Store
from repository.watch import Catalog, Watch
from tests.repository.scripted import a_version, eventually


class Moody:
    """A store that can be away, and that counts how often everything was read."""

    def __init__(self, store: Store) -> None:
        self.away = False
        self.finds = 0
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def revision(self) -> int:
        if self.away:
            raise Unavailable("away")
        return await self._store.revision()

    async def find(self, kind: Any, model: str | None = None) -> Any:
        self.finds += 1
        return await self._store.find(kind, model)


@pytest.fixture
def moody(store: Store) -> Any:
    return Moody(store)


@pytest.fixture
async def watch(moody: Any) -> AsyncIterator[Watch]:
    made = Watch(moody, 0.02)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.wait([task])


async def test_a_write_is_noticed_within_the_interval(watch: Watch, store: Store) -> None:
    """By polling alone."""
    await store.insert(a_version())
    await eventually(lambda: watch.catalog.version("m", 1))


async def test_a_poke_is_answered_at_once(store: Store) -> None:
    """Not after the interval, which is an hour here."""
    watch = Watch(store, 3600.0)
    task = asyncio.create_task(watch.run())
    await eventually(lambda: watch.catalog.revision == 0)
    await store.insert(a_version())
    watch.poke()
    await eventually(lambda: watch.catalog.version("m", 1), 5)
    task.cancel()
    await asyncio.wait([task])


async def test_nothing_is_read_while_nothing_changes(watch: Watch, moody: Any) -> None:
    """Polling asks for the revision only."""
    await eventually(lambda: watch.catalog.revision == 0)
    finds = moody.finds
    for _ in range(5):
        await watch.refresh()
    assert moody.finds == finds


async def test_subscribers_get_each_catalog_and_the_present_one(watch: Watch, store: Store) -> None:
    """Whoever comes late is told at once."""
    early: list[Catalog] = []
    watch.subscribe(early.append)
    await watch.refresh()
    await store.insert(a_version())
    await watch.refresh()
    late: list[Catalog] = []
    watch.subscribe(late.append)
    assert [c.revision for c in early] == [0, 1]
    assert late == [watch.catalog]


async def test_a_subscriber_that_raises_disturbs_nobody(watch: Watch, store: Store) -> None:
    """It is logged; the others are told, and the loop lives."""
    told: list[int] = []

    def broken(catalog: Catalog) -> None:
        raise RuntimeError("broken")

    with capture_logs() as logs:
        watch.subscribe(broken)
        watch.subscribe(lambda catalog: told.append(catalog.revision))
        await store.insert(a_version())
        await eventually(lambda: told[-1:] == [1])
        await store.insert(a_version("m", 2))
        await eventually(lambda: told[-1:] == [2])
    assert {line["event"] for line in logs} == {"subscriber_failed"}


async def test_a_subscriber_that_could_not_take_a_catalog_is_told_again(watch: Watch, store: Store) -> None:
    """At each look, though nothing has changed since; until then nothing is confirmed, and the catalog not followed.
    Others are not told twice, and the log is not filled."""
    told: list[int] = []
    broken = True

    def moody(catalog: Catalog) -> None:
        if broken:
            raise RuntimeError("broken")

    await watch.refresh()
    assert (watch.confirmed, watch.followed) == (True, 0)
    with capture_logs() as logs:
        watch.subscribe(lambda catalog: told.append(catalog.revision))
        watch.subscribe(moody)
        await store.insert(a_version())
        for _ in range(3):
            await watch.refresh()
        assert (watch.catalog.revision, watch.confirmed, watch.followed) == (1, False, 0)
        broken = False
        await eventually(lambda: watch.confirmed)
    assert watch.followed == 1
    assert told == [0, 1]
    assert [line["event"] for line in logs] == ["subscriber_failed", "subscriber_follows"]


async def test_an_absent_store_keeps_the_last_catalog_and_is_logged_once(
    watch: Watch, moody: Any, store: Store
) -> None:
    """What was routed stays routed; when the store is back, what changed meanwhile is seen."""
    await store.insert(a_version())
    await eventually(lambda: watch.catalog.version("m", 1))
    with capture_logs() as logs:
        moody.away = True
        await eventually(lambda: logs)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await watch.refresh()
            await watch.until(lambda catalog: None, 0.03)
        assert [line["event"] for line in logs] == ["repository_away"]
        assert watch.catalog.version("m", 1)
        await store.insert(a_version("m", 2))
        moody.away = False
        await eventually(lambda: watch.catalog.version("m", 2))
    assert [line["event"] for line in logs] == ["repository_away", "repository_back"]


async def test_until_answers_as_soon_as_it_is_so(watch: Watch, store: Store) -> None:
    """Or None when the time is over."""
    waiting = asyncio.create_task(watch.until(lambda catalog: catalog.version("m", 1), 10))
    await store.insert(a_version())
    found = await waiting
    assert found is not None
    assert await watch.until(lambda catalog: catalog.version("m", 9), 0.05) is None


async def test_until_needs_no_run_beside_it(store: Store) -> None:
    """It looks by itself every interval."""
    watch = Watch(store, 0.01)
    await store.insert(a_version())
    assert await watch.until(lambda catalog: catalog.version("m", 1), 10) is not None


async def test_a_catalog_read_during_writes_is_mended(store: Store) -> None:
    """A reader among writers ends at the last revision, with everything in it."""
    watch = Watch(store, 0.005)
    task = asyncio.create_task(watch.run())
    counter = await store.insert(Counter(model="m", last=0))
    for number in range(1, 30):
        await store.insert(a_version("m", number))
        counter = await store.replace(replace(counter, last=number))
    await eventually(lambda: watch.catalog.revision == 59)
    assert len(watch.catalog.versions["m"]) == 29
    task.cancel()
    await asyncio.wait([task])


# --- one look for all ---------------------------------------------------------------------------------------------


class Held(Moody):
    """A store that says what its revision was when it was asked, but while it is held not before it is let go."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked = 0
        self._free = asyncio.Event()

    async def revision(self) -> int:
        self.asked += 1
        said = await self._store.revision()
        await self._free.wait()
        return said if not self.away else await super().revision()

    def hold(self) -> None:
        self.asked = 0
        self._free.clear()

    def let_go(self) -> None:
        self._free.set()


@pytest.fixture
async def held(store: Store) -> Held:
    return Held(store)


@pytest.fixture
async def looked(held: Any) -> Watch:
    """One that knows of the empty store, which is held from now on."""
    made = Watch(held, 60.0)
    held.let_go()
    await made.refresh()
    held.hold()
    return made


async def begun(looked: Watch, held: Held, asked: int) -> asyncio.Task[Catalog]:
    """A look, at a moment when the store has been asked that often."""
    task = asyncio.create_task(looked.refresh())
    await asyncio.sleep(0)
    await eventually(lambda: held.asked == asked)
    return task


async def test_who_waits_for_a_look_that_fails_has_looked(looked: Watch, held: Held) -> None:
    """The store is asked once: nobody waits for it twice."""
    held.away = True
    looks = [await begun(looked, held, 1) for _ in range(3)]
    held.let_go()
    failures = await asyncio.gather(*looks, return_exceptions=True)
    assert [type(failure) for failure in failures] == [Unavailable] * 3
    assert held.asked == 1


async def test_a_look_from_before_a_write_does_not_show_it(looked: Watch, held: Held, store: Store) -> None:
    """Who comes while one is under way gets one that began later, shared by all who came."""
    first = await begun(looked, held, 1)
    before = asyncio.all_tasks()
    await store.insert(a_version())
    later = [await begun(looked, held, 1) for _ in range(3)]
    held.let_go()
    assert (await first).version("m", 1) is None
    seen = await asyncio.gather(*later)
    assert [catalog.version("m", 1) is not None for catalog in seen] == [True] * 3
    assert held.asked == 4, "the first look; of the next the revision, and everything between two looks at it"
    assert asyncio.all_tasks() <= before


async def test_a_look_whose_task_is_cancelled_is_taken_over(looked: Watch, held: Held) -> None:
    """By one of those who waited for it; a waiter that is cancelled disturbs nobody."""
    leader, impatient, patient = [await begun(looked, held, 1) for _ in range(3)]
    impatient.cancel()
    leader.cancel()
    await eventually(lambda: held.asked == 2)
    held.let_go()
    assert (await patient).revision == 0
    assert leader.cancelled()
    assert impatient.cancelled()
