"""Several processes on one repository: no number given twice, no update lost, nothing broken by a kill."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from core.identity import Verifier
from core.settings import Settings
from repository.commands import Commands
from repository.gridfs import MongoArtifacts
from repository.opening import open_repository
from repository.records import Counter, Version
from repository.store import Artifacts, Store
from repository.watch import Watch
from tests.repository.conftest import PATIENCE_S
from tests.repository.scripted import ROOT, SETTINGS, chunks, eventually, files_of, manifest

HERE = Path(__file__).parents[2]
PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from core.settings import Settings
from repository.commands import Commands
from repository.opening import open_repository
from repository.watch import Watch
from tests.repository.scripted import ROOT, SETTINGS, chunks, manifest

async def main():
    store, artifacts = await open_repository(Settings())
    commands = Commands(store, artifacts, SETTINGS, Watch(store, 1.0))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    {work}
    await store.close()

asyncio.run(main())
"""
PUSHES = """
    for _ in range(int(sys.argv[1])):
        parts = [os.urandom(int(sys.argv[2])) for _ in range(3)]
        version = await commands.push("m", manifest(), chunks(*parts), ROOT)
        print(version.version, flush=True)
"""
REVOKES = """
    await commands.revoke_key(sys.argv[1], ROOT)
"""


class Place(NamedTuple):
    """Where the repository of a test is, and how much is asked of it."""

    settings: Settings
    pushes: int
    part: int
    """Bytes of a third of an artifact."""
    kills: int

    async def open(self) -> tuple[Store, Artifacts]:
        store, artifacts = await open_repository(self.settings)
        if isinstance(artifacts, MongoArtifacts):
            artifacts._patience = PATIENCE_S
        return store, artifacts


@pytest.fixture(params=["embedded", "mongo"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Mongo's is a slower one."""
    if request.param == "embedded":
        return Place(Settings(home=tmp_path), 20, 1 << 20, 6)
    server, _, database = request.getfixturevalue("mongo_url").rpartition("/")
    return Place(Settings(home=tmp_path, mongo_url=f"{server}/", mongo_database=database), 5, 1 << 16, 2)


class Neighbour:
    """Another process with the same repository open. It begins its work when told to."""

    def __init__(self, place: Place, work: str, *arguments: str) -> None:
        program = PROGRAM.format(work=work.strip())
        settings = {name: str(getattr(place.settings, name)) for name in ("home", "mongo_url", "mongo_database")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=HERE,
            env=os.environ | {f"PENSTOCK_{name.upper()}": value for name, value in settings.items()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self._line() == "open"

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def number(self) -> int:
        """The next that it prints, its log left out."""
        while not (line := self._line()).isdecimal():
            assert self.process.poll() is None
        return int(line)

    def numbers(self) -> list[int]:
        """What else it printed, once it is over."""
        assert self.process.stdout is not None
        lines = self.process.stdout.read().split("\n")
        return [int(line) for line in lines[:-1] if line.isdecimal()]

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def neighbours() -> Iterator[list[Neighbour]]:
    """Every process started by a test is gone after it."""
    started: list[Neighbour] = []
    yield started
    for neighbour in started:
        with neighbour.process as process:
            process.kill()


async def test_two_processes_that_push_at_once_share_the_numbers(place: Place, neighbours: list[Neighbour]) -> None:
    """As many numbers as pushes, as many records, every artifact whole."""
    neighbours += [Neighbour(place, PUSHES, str(place.pushes), str(place.part)) for _ in range(2)]
    for neighbour in neighbours:
        await asyncio.to_thread(neighbour.ready)
    for neighbour in neighbours:
        neighbour.begin()
    printed = [await asyncio.to_thread(neighbour.numbers) for neighbour in neighbours]
    numbers = list(range(1, 2 * place.pushes + 1))
    assert sorted([*printed[0], *printed[1]]) == numbers
    assert all(printed)
    store, kept = await place.open()
    versions = await store.find(Version)
    assert sorted(version.version for version in versions) == numbers
    for version in versions:
        await kept.fetch(version.digest)
    await store.close()


async def test_a_revocation_by_another_process_holds_within_the_interval(
    place: Place, neighbours: list[Neighbour]
) -> None:
    """The default interval is a second, so within five seconds at most."""
    store, artifacts = await place.open()
    watch = Watch(store, 1.0)
    verifier = Verifier()
    watch.subscribe(lambda catalog: verifier.replace(catalog.credentials()))
    polling = asyncio.create_task(watch.run())
    issued = await Commands(store, artifacts, SETTINGS, watch).create_key("app")
    assert verifier.verify(issued.secret.encode()).name == "app"
    neighbour = Neighbour(place, REVOKES, issued.key.key_id)
    neighbours.append(neighbour)
    await asyncio.to_thread(neighbour.ready)
    neighbour.begin()
    assert await asyncio.to_thread(neighbour.process.wait) == 0
    await eventually(lambda: not watch.catalog.credentials(), within=5.0)
    polling.cancel()
    await asyncio.wait([polling])
    await store.close()


async def test_kill_9_at_any_moment_of_a_push_leaves_the_store_whole(place: Place, neighbours: list[Neighbour]) -> None:
    """What was acknowledged is there; every record's artifact is whole; after a sweep no file is there for nothing;
    no number is used again."""
    chance = random.Random(7)
    acknowledged: set[int] = set()
    for kill in range(place.kills):
        neighbour = Neighbour(place, PUSHES, "1000000", str(place.part))
        neighbours.append(neighbour)
        await asyncio.to_thread(neighbour.ready)
        neighbour.begin()
        printed = [await asyncio.to_thread(neighbour.number)] if kill % 2 else []
        await asyncio.sleep(chance.uniform(0.01, 0.25))
        neighbour.process.kill()
        printed += await asyncio.to_thread(neighbour.numbers)
        assert not acknowledged & set(printed)
        acknowledged |= set(printed)
        _whole(place.settings.home / "repository.sqlite")
        store, kept = await place.open()
        commands = Commands(store, kept, SETTINGS, Watch(store, 1.0))
        versions = await store.find(Version)
        numbers = {version.version for version in versions}
        assert acknowledged <= numbers
        counter = await store.get(Counter, "m")
        assert not numbers or (counter is not None and counter.last >= max(numbers))
        for version in versions:
            await kept.fetch(version.digest)
        await _swept(commands, kept, {version.digest for version in versions})
        acknowledged.add((await commands.push("m", manifest(), chunks(b"after"), ROOT)).version)
        await store.close()
    assert len(acknowledged) > place.kills


async def _swept(commands: Commands, kept: Artifacts, digests: set[str]) -> None:
    """Sweep until these are all: a database may hold a last sign of life of one that was killed, and take it for one
    who lives."""
    async with asyncio.timeout(20):
        while True:
            await commands.sweep()
            if await files_of(kept) == digests:
                return


def _whole(path: Path) -> None:
    if not path.exists():
        return
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
