"""The reconciler's steps: whoever no longer holds the lease changes nothing more, not even within what it has begun."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import pytest
from structlog.typing import EventDict

from core import beats
from core.beats import FAILED, ReplicaBeat
from core.settings import Settings
from repository.catalog import Place
from repository.commands import Commands
from repository.opening import open_repository
from repository.records import AUTO, LOADING, NEVER, READY, UNLOADING, Record, Signature, Version, VersionState
from repository.store import Store
from repository.watch import Watch
from tests.workers.asking import until
from tests.workers.samples import version
from workers import reconciler
from workers.lookout import Lookout
from workers.placement import Cluster, Node, Spec
from workers.reconcile import Application
from workers.reconciler import Reconciler

R = TypeVar("R", bound=Record)
HERE = ("m", 1)


class Site:
    """A cluster and a broker that do at once what they are told (replicas end after `ends_s`), and a real repository.
    What the reconciler changes is noted, in order; the lease is lost after `keeps` changes."""

    def __init__(self, folder: Path, keeps: int, poll_interval_s: float = 0.01) -> None:
        self.settings = Settings(home=folder, poll_interval_s=poll_interval_s, drain_timeout_s=0.2, load_timeout_s=0.1)
        self.done: list[str] = []
        self.said: list[tuple[str, int]] = []
        """States and the attempts that they answer."""
        self.looks = 0
        self.running: dict[Place, Application] = {}
        self.queued = 0
        self.ends_s = 0.0
        self.failures = 0
        """Of the next looks at the cluster."""
        self.deposed = False
        self._keeps = keeps

    @property
    def held(self) -> bool:
        return not self.deposed and len(self.done) < self._keeps

    def note(self, what: str) -> None:
        self.done.append(what)

    def end(self, place: Place) -> None:
        del self.running[place]
        if self.ends_s:
            self.note("gone")


class Runs:
    def __init__(self, site: Site) -> None:
        self._site = site

    async def applications(self) -> dict[Place, Application]:
        if self._site.failures:
            self._site.failures -= 1
            raise ZeroDivisionError("what nobody expected")
        return dict(self._site.running)

    async def cluster(self) -> Cluster:
        self._site.looks += 1
        return Cluster([Node({"CPU": 4.0}, {"CPU": 4.0})], [])

    async def deploy(self, version: Version, spec: Spec) -> None:
        self._site.running[version.model, version.version] = Application(spec)
        self._site.note("deploy")

    async def delete(self, place: Place) -> None:
        self._site.note("delete")
        asyncio.get_running_loop().call_later(self._site.ends_s, self._site.end, place)


class Ears(Lookout):
    """Hears what the test says; it has no connection."""

    def __init__(self, site: Site) -> None:
        super().__init__("amqp://nowhere", lambda: None, lambda: None)
        self._site = site

    def hearing(self, now: int) -> bool:
        return True

    async def waiting(self, model: str, version: int) -> int:
        return self._site.queued

    async def delete_queues(self, model: str, version: int) -> None:
        self._site.note("delete queues")


class Noted:
    """A store that notes what states are written."""

    def __init__(self, store: Store, site: Site) -> None:
        self._store = store
        self._site = site

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def insert(self, record: R) -> R:
        self._note(record)
        return await self._store.insert(record)

    async def replace(self, record: R) -> R:
        self._note(record)
        return await self._store.replace(record)

    def _note(self, record: Record) -> None:
        if isinstance(record, VersionState):
            self._site.note(record.state)
            self._site.said.append((record.state, record.attempt))
        elif isinstance(record, Version) and self._site.running:
            self._site.note("complete")


def heard(state: str, made: Version) -> ReplicaBeat:
    return ReplicaBeat(
        sender="replica",
        boot="b",
        sent=0,
        model="m",
        version=1,
        attempt=1,
        state=state,
        reason="broken" if state == FAILED else "",
        signature=msgspec.msgpack.encode(made.signature),
        max_batch=made.max_batch,
    )


class Story(NamedTuple):
    """What is there, what is heard, what the reconciler does about it."""

    does: Sequence[str]
    runs: bool = True
    state: str = ""
    beat: str = ""
    wanted: str = AUTO
    outputs: bool = True
    attempt: int = 1


STORIES = {
    "deploys": Story(["LOADING", "deploy"], runs=False),
    "opens": Story(["READY"], state=LOADING, beat=beats.READY),
    "completes and opens": Story(["complete", "READY"], state=LOADING, beat=beats.READY, outputs=False),
    "fails": Story(["UNAVAILABLE", "delete", "delete queues"], state=LOADING, beat=FAILED),
    "lets go": Story(["UNLOADING", "delete", "delete queues", "UNAVAILABLE"], state=READY, wanted=NEVER),
    "forgets": Story(["delete queues", "UNAVAILABLE"], state=UNLOADING, runs=False, wanted=NEVER),
}


@asynccontextmanager
async def reconciling(
    folder: Path, story: Story, keeps: int, failures: int = 0, **settings: Any
) -> AsyncIterator[Site]:
    site = Site(folder, keeps, **settings)
    site.failures = failures
    whole = version(wanted=story.wanted, attempt=story.attempt)
    made = whole if story.outputs else msgspec.structs.replace(whole, signature=Signature(whole.signature.inputs, ()))
    store, artifacts = await open_repository(site.settings)
    await store.insert(made)
    if story.state:
        await store.insert(VersionState(model="m", version=1, state=story.state))
    if story.runs:
        site.running[HERE] = Application(Spec(1, 1.0))
    noted = Noted(store, site)
    watch = Watch(noted, 0.01)
    await watch.refresh()
    ears = Ears(site)
    if story.beat:
        ears.fleet.hear(heard(story.beat, whole), time.monotonic_ns())
    commands = Commands(noted, artifacts, site.settings, watch)
    running = Reconciler(noted, watch, commands, Runs(site), ears, site.settings, lambda: site.held)
    tasks = [asyncio.create_task(watch.run()), asyncio.create_task(running.run())]
    try:
        yield site
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await running.close()
        await store.close()


async def test_a_look_that_fails_is_not_the_last(tmp_path: Path, logged: list[EventDict]) -> None:
    """Nor is it followed by others without a pause."""
    async with reconciling(tmp_path, STORIES["deploys"], 99, failures=3, poll_interval_s=0.2) as site:
        begun = time.monotonic()
        await until(lambda: "deploy" in site.done, 10.0)
        assert time.monotonic() - begun > 0.6
    assert [entry["event"] for entry in logged].count("looking failed") == 3


CUTS = [(name, keeps) for name, story in STORIES.items() for keeps in range(1, len(story.does) + 1)]


@pytest.mark.parametrize(("name", "keeps"), CUTS)
async def test_who_loses_the_lease_changes_nothing_more(
    tmp_path: Path, name: str, keeps: int, logged: list[EventDict]
) -> None:
    """After each change that a step makes, in turn: the step ends there, with a line that says so."""
    story = STORIES[name]
    async with reconciling(tmp_path, story, keeps) as site:
        await until(lambda: len(site.done) >= keeps)
        if keeps < len(story.does) or story.does[-1] == "deploy":
            await until(lambda: any(entry["event"] == "left to another process" for entry in logged))
        assert site.done == story.does[:keeps]
    assert not [entry for entry in logged if entry["event"] == "reconciling failed"]


async def test_nor_what_it_waited_for(tmp_path: Path, logged: list[EventDict]) -> None:
    """A lease that is lost while a step waits ends it, though it be won back before there is anything to change:
    another process may have begun anew."""
    async with reconciling(tmp_path, STORIES["lets go"], 99) as site:
        site.queued = 1
        await until(lambda: site.done == ["UNLOADING"])
        site.deposed = True
        await until(lambda: [entry["event"] for entry in logged].count("left to another process") == 1)
        site.queued = 0
        assert site.done == ["UNLOADING"]
        site.deposed = False
        await until(lambda: len(site.done) == 1 + len(STORIES["lets go"].does))
        assert site.done[1:] == STORIES["lets go"].does


async def test_what_is_deployed_and_never_heard_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though Serve says that it runs: after the time of a start and a load people are told, and it is taken away."""
    monkeypatch.setattr(reconciler, "STARTS_S", 0.1)
    story = Story(["LOADING", "deploy", "UNAVAILABLE", "delete", "delete queues"], runs=False)
    async with reconciling(tmp_path, story, 99) as site:
        await until(lambda: site.done == story.does)


async def test_a_failure_answers_the_attempt_that_failed(tmp_path: Path) -> None:
    """Who asked for another one while the first still loaded gets that one's answer: it is made once, and the replica
    that failed, which is heard for a moment yet, says nothing of it."""
    story = Story(
        ["UNAVAILABLE", "delete", "delete queues", "LOADING", "deploy"], state=LOADING, beat=FAILED, attempt=2
    )
    async with reconciling(tmp_path, story, 99) as site:
        await until(lambda: len(site.done) >= len(story.does))
        looks = site.looks
        await until(lambda: site.looks > looks + 2)
        assert site.done == story.does
        assert site.said == [("UNAVAILABLE", 1), ("LOADING", 2)]


async def test_queues_stay_until_the_last_replica_has_drained(tmp_path: Path) -> None:
    """A drain takes as long as the deadline of its version allows, here a second, not as the setting says."""
    async with reconciling(tmp_path, STORIES["lets go"], 99) as site:
        site.ends_s = 0.9
        await until(lambda: len(site.done) == 5)
        assert site.done == ["UNLOADING", "delete", "gone", "delete queues", "UNAVAILABLE"]
