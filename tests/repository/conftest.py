"""Every implementation of the store and of the artifacts, one backend each: a new one joins here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient

from core.errors import Unavailable
from repository.artifacts import FileArtifacts
from repository.cache import Cache
from repository.gridfs import MongoArtifacts
from repository.mongo import Mongo, MongoStore, connected
from repository.sqlite import SqliteStore
from repository.store import Artifacts, Store
from tests.repository.scripted import Bench, bench_of

DRIVERS: dict[str, type] = {"motor": AsyncIOMotorClient, "pymongo": AsyncMongoClient}
ALL_MEMORY = 1 << 30
BACKENDS = ["embedded", *sorted(DRIVERS)]
BEAT_S, PATIENCE_S = 0.05, 0.3
MADE_WITHIN_S = 30.0


class Backend(NamedTuple):
    store: Store
    artifacts: Artifacts


def mongo_at(url: str, driver: str) -> Mongo:
    """The database in the URL's path, through a driver."""
    server, _, database = url.rpartition("/")
    return Mongo(connected(DRIVERS[driver], f"{server}/"), database)


@pytest.fixture(params=sorted(DRIVERS))
async def mongo(request: pytest.FixtureRequest, mongo_url: str) -> AsyncIterator[Mongo]:
    """A database of MongoDB's, through each driver."""
    opened = mongo_at(mongo_url, request.param)
    yield opened
    await opened.close()


@pytest.fixture(params=["embedded", "motor"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """What knows the repository by its contract alone is tried on one of each kind; the contract's suites on all."""
    return str(request.param)


@pytest.fixture
async def backend(backend_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if backend_name == "embedded":
        made = Backend(await SqliteStore.open(tmp_path / "records.sqlite"), FileArtifacts(tmp_path / "artifacts"))
    else:
        mongo = mongo_at(request.getfixturevalue("mongo_url"), backend_name)
        cache = Cache(tmp_path / "cache", ALL_MEMORY)
        made = Backend(MongoStore(mongo), MongoArtifacts(mongo, cache, BEAT_S, PATIENCE_S))
    await answered(made.store.revision)
    yield made
    await made.store.close()


async def answered(call: Callable[[], Awaitable[object]]) -> None:
    """Until it is: a database's first call, and the first after it was away, may take longer than any other."""
    async with asyncio.timeout(MADE_WITHIN_S):
        while True:
            with suppress(Unavailable):
                await call()
                return


@pytest.fixture
def store(backend: Backend) -> Store:
    return backend.store


@pytest.fixture
def artifacts(backend: Backend) -> Artifacts:
    return backend.artifacts


@pytest.fixture
async def bench(store: Store, artifacts: Artifacts) -> AsyncIterator[Bench]:
    """A repository with its commands, and a scripted worker that loads what is wanted."""
    async with bench_of(store, artifacts) as made:
        yield made
