"""Every implementation of the store and of the artifacts, one backend each: a new one joins here."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, MongoClient

from repository.artifacts import FileArtifacts
from repository.cache import Cache
from repository.gridfs import MongoArtifacts
from repository.mongo import Mongo, MongoStore, connected
from repository.sqlite import SqliteStore
from repository.store import Artifacts, Store
from tests.repository.mongo_server import MongoServer
from tests.repository.scripted import Bench, bench_of

DRIVERS: dict[str, type] = {"motor": AsyncIOMotorClient, "pymongo": AsyncMongoClient}
ALL_MEMORY = 1 << 30
BEAT_S, PATIENCE_S = 0.05, 0.3


class Backend(NamedTuple):
    store: Store
    artifacts: Artifacts


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    server = MongoServer(tmp_path_factory.mktemp("mongo"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def mongo_url(mongo_server: MongoServer) -> str:
    return mongo_server.url


@pytest.fixture
def database(mongo_url: str) -> Iterator[str]:
    """The name of a database that nobody else uses."""
    name = f"test_{secrets.token_hex(8)}"
    yield name
    with MongoClient[dict[str, object]](mongo_url) as client:
        client.drop_database(name)


@pytest.fixture(params=sorted(DRIVERS))
async def mongo(request: pytest.FixtureRequest, mongo_url: str, database: str) -> AsyncIterator[Mongo]:
    """A database of MongoDB's, through each driver."""
    opened = Mongo(connected(DRIVERS[request.param], mongo_url), database)
    yield opened
    await opened.close()


@pytest.fixture(params=["embedded", *sorted(DRIVERS)])
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def backend(backend_name: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if backend_name == "embedded":
        made = Backend(await SqliteStore.open(tmp_path / "records.sqlite"), FileArtifacts(tmp_path / "artifacts"))
    else:
        url, database = request.getfixturevalue("mongo_url"), request.getfixturevalue("database")
        mongo = Mongo(connected(DRIVERS[backend_name], url), database)
        cache = Cache(tmp_path / "cache", ALL_MEMORY)
        made = Backend(MongoStore(mongo), MongoArtifacts(mongo, cache, BEAT_S, PATIENCE_S))
    yield made
    await made.store.close()


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
