"""A worker's part played by a script, and the small things that every test of the repository needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from core.errors import Conflict, Unavailable
from core.identity import ADMIN, CODE, DEPLOY, Principal
from core.settings import Settings
from repository.artifacts import FileArtifacts
from repository.catalog import Catalog, Place
from repository.commands import Commands
from repository.manifest import Manifest, parse
from repository.records import LOADING, READY, UNAVAILABLE, Record, Signature, TensorSpec, Version, VersionState
from repository.sqlite import SqliteStore
from repository.store import Artifacts, Store
from repository.wanted import wanted
from repository.watch import Watch

T = TypeVar("T")
WITHIN_S = 20.0
SETTINGS = Settings(load_timeout_s=WITHIN_S, drain_timeout_s=1.0, allow_code=True)
ROOT = Principal("root", "root", "root", ADMIN, ("*",), frozenset({CODE}))
DEPLOYER = Principal("dave", "dave", "ops", DEPLOY)
SPEC = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


def manifest(text: str = '{"format": "onnx"}', settings: Settings = SETTINGS) -> Manifest:
    return parse(text.encode(), settings)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def a_version(model: str = "m", version: int = 1, **fields: object) -> Version:
    made = Version(
        model=model,
        version=version,
        owner="ops",
        format="onnx",
        digest=f"{version:064x}",
        size=1,
        signature=SPEC,
        max_batch=32,
        default_deadline_ms=1000,
        queue_bound=8,
        created=0.0,
    )
    return replace(made, **fields)


def a_state(model: str, version: int, state: str, attempt: int = 1) -> VersionState:
    return VersionState(model=model, version=version, state=state, attempt=attempt)


async def eventually(answer: Callable[[], T | None], within: float = WITHIN_S) -> T:
    """The first answer that is not None or False; fails after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            found = answer()
            if found is not None and found is not False:
                return found
            await asyncio.sleep(0.005)


class Away:
    """A repository that goes away: after `calls_left` more calls each one waits `seconds`, then it is Unavailable.
    `unanswered` counts those. `before(store)` is what to ask in place of the store.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls_left = 1 << 62
        self.unanswered = 0
        self.seconds = seconds

    def before(self, of: Any) -> Any:
        return _Before(self, of)

    async def call(self, method: Callable[..., Awaitable[T]], *args: Any) -> T:
        self.calls_left -= 1
        if self.calls_left >= 0:
            return await method(*args)
        self.unanswered += 1
        await asyncio.sleep(self.seconds)
        raise Unavailable("the repository is away")


class _Before:
    def __init__(self, away: Away, of: Any) -> None:
        self._away = away
        self._of = of

    def __getattr__(self, name: str) -> Any:
        return partial(self._away.call, getattr(self._of, name))


class ScriptedHost:
    """Makes the states follow what is wanted, as a worker would, without loading anything.

    `failing`: versions that do not load, with the reason. `deaf`: nothing is done at all. `log`: what was said.
    """

    def __init__(self, store: Store, watch: Watch) -> None:
        self.failing: dict[Place, str] = {}
        self.deaf = False
        self.log: list[tuple[str, int, str]] = []
        self._store = store
        self._watch = watch
        self._due = asyncio.Event()
        watch.subscribe(lambda catalog: self._due.set())

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            catalog = self._watch.catalog
            for version in [] if self.deaf else catalog.all_versions():
                await self._attend(catalog, version)

    async def _attend(self, catalog: Catalog, version: Version) -> None:
        place = (version.model, version.version)
        state = catalog.states.get(place)
        if place not in wanted(catalog):
            if state is None or state.state in (READY, LOADING):
                await self.say(version, UNAVAILABLE, "unloaded")
        elif state is None or state.attempt < version.attempt or state.reason == "unloaded":
            reason = self.failing.get(place, "")
            await self.say(version, UNAVAILABLE if reason else READY, reason)

    async def say(self, version: Version, state: str, reason: str = "") -> None:
        """Write a state, as the one who knows."""
        self.log.append((version.model, version.version, state))
        said = VersionState(
            model=version.model, version=version.version, state=state, reason=reason, attempt=version.attempt
        )
        while not await self._said(said):
            pass
        await self._watch.refresh()

    async def _said(self, said: VersionState) -> bool:
        there = await self._store.get(VersionState, said.key)
        try:
            if there is None:
                await self._store.insert(said)
            else:
                await self._store.replace(replace(said, revision=there.revision))
        except Conflict:
            return False
        return True


class Bench(NamedTuple):
    store: Store
    artifacts: Artifacts
    watch: Watch
    commands: Commands
    host: ScriptedHost

    async def push(self, model: str = "m", text: str = '{"format": "onnx"}', content: bytes = b"") -> Version:
        """Push (random content where none is given) and wait until it is ready."""
        manifest_ = manifest(text)
        version = await self.commands.push(model, manifest_, chunks(content or os.urandom(64)), ROOT)
        await self.commands.settle(version, manifest_.alias)
        return self.now(model, version.version)

    def now(self, model: str, version: int) -> Version:
        found = self.watch.catalog.version(model, version)
        assert found is not None, f"{model}/{version} is gone"
        return found

    def numbers(self, model: str = "m") -> list[int]:
        return list(self.watch.catalog.versions.get(model, ()))

    def state(self, model: str, version: int) -> str:
        return self.watch.catalog.state(model, version)


@contextlib.asynccontextmanager
async def bench_of(store: Store, artifacts: Artifacts, settings: Settings = SETTINGS) -> AsyncIterator[Bench]:
    watch = Watch(store, 0.05)
    commands = Commands(store, artifacts, settings, watch)
    host = ScriptedHost(store, watch)
    await watch.refresh()
    task = asyncio.create_task(host.run())
    try:
        yield Bench(store, artifacts, watch, commands, host)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def put_raw(store: Store, kind: type[Record], key: str, body: str, model: str = "") -> None:
    """Store a record as other hands may have left it, and count that."""
    if isinstance(store, SqliteStore):
        database, row = store._database, (kind.kind, key, model, 1, 1, body.encode())
        await store._run(lambda: database.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)", row))
        await store._run(lambda: database.execute("UPDATE clock SET revision = revision + 1"))
        return
    name = f"{kind.kind}/{key}"
    fields = {"kind": kind.kind, "model": model, "seq": 1, "revision": 1, "gone": False, "mark": "", "body": body}
    at: Any = store
    await at._records.replace_one({"_id": name}, fields, upsert=True)
    await at._clock.update_one({"_id": "clock"}, {"$inc": {"revision": 1}})


async def clock_says(store: Store, revision: object) -> None:
    if isinstance(store, SqliteStore):
        database = store._database
        await store._run(lambda: database.execute("UPDATE clock SET revision = ?", (revision,)))
        return
    at: Any = store
    await at._clock.update_one({"_id": "clock"}, {"$set": {"revision": revision}})


async def files_of(artifacts: Artifacts) -> set[str]:
    """Names of everything that is kept, whole or not: a digest where there is one."""
    if isinstance(artifacts, FileArtifacts):
        folder = artifacts._folder
        return {path.name for path in folder.iterdir()} if folder.exists() else set()
    from repository.gridfs import MongoArtifacts  # many processes of embedded tests come by here

    assert isinstance(artifacts, MongoArtifacts)
    files = {file["_id"]: file["filename"] or file["_id"] for file in await artifacts._files.find({}).to_list(None)}
    chunks = {chunk["files_id"] for chunk in await artifacts._chunks.find({}, {"files_id": 1}).to_list(None)}
    return {files.get(file, file) for file in {*files, *chunks}}
