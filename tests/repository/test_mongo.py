"""What is particular to MongoDB: operators, writers that die, a server that is away, both drivers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS
from msgspec.structs import replace
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from structlog.testing import capture_logs

from core.errors import Conflict, InvalidRequest, Unavailable
from core.settings import Settings
from repository.cache import Cache
from repository.gridfs import MongoArtifacts
from repository.mongo import SETTLE_S, Document, Mongo, MongoStore, connect
from repository.opening import open_repository
from repository.records import Counter, Version
from tests.repository.conftest import ALL_MEMORY, DRIVERS, answered, mongo_at
from tests.repository.scripted import a_version, chunks
from tests.services import Own


@pytest.fixture
async def kept(mongo: Mongo) -> MongoStore:
    return MongoStore(mongo)


# --- what a caller says ------------------------------------------------------------------------------------------

OPERATORS: list[Any] = [{"$ne": ""}, {"$gt": ""}, {"$regex": ".*"}, {"$where": "1"}, ["m"], None, 1, b"m"]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
async def test_no_value_is_ever_an_operator(kept: MongoStore, operator: Any) -> None:
    """What is not text is refused before it reaches the server, should a caller's check have let it through."""
    await kept.insert(a_version())
    with pytest.raises(InvalidRequest, match="text"):
        await kept.get(Version, operator)
    if operator is not None:
        with pytest.raises(InvalidRequest, match="text"):
            await kept.find(Version, operator)


async def test_no_text_is_ever_a_field(kept: MongoStore, mongo: Mongo) -> None:
    """Whatever the caller calls things, a document has the same few fields, and an update changes no other."""
    fields = {"_id", "kind", "model", "seq", "revision", "gone", "mark", "body"}
    odd = {"$set": "1", "a.b": "$c", "gone": "true", "n\x00": "\x00"}
    stored = await kept.insert(a_version("$gone", tags=odd))
    await kept.replace(replace(stored, tags={"$unset": "gone", "body": "{}"}))
    (document,) = await mongo.collection("records").find({}).to_list(None)
    assert set(document) == fields
    assert (document["gone"], document["model"], document["revision"]) == (False, "$gone", 2)


@pytest.mark.parametrize("text", ["\ud800", "m/\udfff"])
async def test_text_that_cannot_be_stored_is_refused(kept: MongoStore, text: str) -> None:
    """Half a surrogate pair is no text of MongoDB's."""
    with pytest.raises(InvalidRequest, match="cannot keep"):
        await kept.get(Version, text)
    with pytest.raises(InvalidRequest, match="cannot keep"):
        await kept.find(Version, text)


# --- writers that die --------------------------------------------------------------------------------------------


class Later:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Dying(MongoStore):
    """Dies between a write and its count."""

    async def _settle(self, written: Document) -> None:
        raise ConnectionAbortedError


Writing = Callable[[MongoStore, Counter], Awaitable[Any]]
WRITES: dict[str, Writing] = {
    "insert": lambda store, there: store.insert(Counter(model="new", last=1)),
    "replace": lambda store, there: store.replace(replace(there, last=2)),
    "delete": lambda store, there: store.delete(there),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_write_whose_writer_died_before_it_was_counted_is_noticed(
    kept: MongoStore, mongo: Mongo, write: Writing
) -> None:
    """By whoever polls, at the second look that finds it uncounted; and it is counted once."""
    there = await kept.insert(Counter(model="m", last=1))
    later = Later()
    poller = MongoStore(mongo, later)
    with pytest.raises(ConnectionAbortedError):
        await write(Dying(mongo), there)
    before = await poller.revision()
    later.now += SETTLE_S
    assert await poller.revision() == before + 1
    for _ in range(2):
        later.now += SETTLE_S
        assert await poller.revision() == before + 1
    records = await mongo.collection("records").find({}).to_list(None)
    assert [(record["mark"], record["gone"]) for record in records] == [("", False)] * len(await kept.find(Counter))


async def test_a_living_writer_is_not_counted_for(kept: MongoStore, mongo: Mongo) -> None:
    """A mark that is seen once may be another's who is just about to count."""
    later = Later()
    poller = MongoStore(mongo, later)
    with pytest.raises(ConnectionAbortedError):
        await Dying(mongo).insert(Counter(model="m", last=1))
    assert await poller.revision() == 0
    later.now += SETTLE_S / 2
    assert await poller.revision() == 0


async def test_a_deletion_whose_writer_died_is_a_deletion(kept: MongoStore, mongo: Mongo) -> None:
    """At once, for every reader and writer; its key can be taken again."""
    there = await kept.insert(Counter(model="m", last=1))
    with pytest.raises(ConnectionAbortedError):
        await Dying(mongo).delete(there)
    assert await kept.get(Counter, "m") is None
    assert await kept.find(Counter) == []
    for again in (kept.delete(there), kept.replace(there)):
        with pytest.raises(Conflict):
            await again
    assert (await kept.insert(Counter(model="m", last=9))).revision == 1
    assert await kept.revision() == 3


# --- the server --------------------------------------------------------------------------------------------------


async def test_writes_need_a_majority_and_the_journal(mongo: Mongo) -> None:
    """And reads see only what a majority has; of the primary, whatever the URL says."""
    for name in ("records", "artifacts.chunks"):
        collection = mongo.collection(name)
        assert collection.write_concern.document == {"w": "majority", "j": True}
        assert collection.read_concern.level == "majority"


async def test_a_later_format_is_refused(kept: MongoStore, mongo: Mongo) -> None:
    """An older server does not write into what a newer one made."""
    await kept.revision()
    await mongo.collection("clock").update_one({"_id": "clock"}, {"$set": {"format": 99}})
    newcomer = MongoStore(mongo)
    for attempt in (newcomer.revision(), newcomer.insert(Counter(model="m", last=1))):
        with pytest.raises(Unavailable, match="format 99"):
            await attempt


async def test_a_damaged_record_is_unavailable(kept: MongoStore, mongo: Mongo) -> None:
    """And the others are served."""
    for model in ("a", "b"):
        await kept.insert(Counter(model=model, last=1))
    await mongo.collection("records").update_one({"_id": "counter/a"}, {"$set": {"body": '{"last": "no"}'}})
    with pytest.raises(Unavailable, match="damaged"):
        await kept.get(Counter, "a")
    assert await kept.get(Counter, "b") is not None


async def test_a_document_that_is_no_record_stands_in_nobodys_way(kept: MongoStore, mongo: Mongo) -> None:
    """Whatever it has, or lacks: an id, a body, a type."""
    good = await kept.insert(Counter(model="m", last=1))
    whole = {"kind": "counter", "gone": False, "mark": "", "seq": 1, "revision": 1, "model": "m"}
    body = '{"model": "x", "last": 1}'
    for odd in (
        {"_id": "counter/nobody"},
        {"_id": "counter/x", "body": 7},
        {"_id": "counter/bytes", "body": b"\xff"},
        {"_id": "counter/date", "body": DatetimeMS(1 << 60)},
        {"_id": "counter/later", "body": body, "seq": DatetimeMS(1 << 60)},
        {"_id": 7, "body": body},
        {"_id": {"a": 1}, "body": body},
        {"_id": "x", "body": body},
    ):
        await mongo.collection("records").insert_one(whole | odd)
    with capture_logs() as logs:
        assert await kept.find(Counter) == [good]
    assert {line["event"] for line in logs} == {"record_damaged"}
    with pytest.raises(Unavailable, match="counter 'x'"):
        await kept.get(Counter, "x")


@pytest.mark.parametrize("odd", [{}, {"gone": "yes"}, {"gone": None}, {"gone": True, "mark": ""}, {"gone": 1}], ids=str)
async def test_a_mark_that_no_writer_leaves_is_passed_over(kept: MongoStore, mongo: Mongo, odd: Document) -> None:
    """It is neither counted nor removed, look after look, and who would take its place is told so."""
    await kept.insert(Counter(model="m", last=1))
    await mongo.collection("records").insert_one({"_id": "counter/n", "kind": "counter", "mark": "zz"} | odd)
    later = Later()
    poller = MongoStore(mongo, later)
    for _ in range(4):
        assert await poller.revision() == 1
        later.now += SETTLE_S
    with pytest.raises((Conflict, Unavailable), match="counter 'n'"):
        await kept.insert(Counter(model="n", last=1))
    assert await mongo.collection("records").count_documents({"_id": "counter/n"}) == 1


URLS = [
    "",
    "http://h/",
    "mongodb://",
    "mongodb://u:hunter2@h:x/",
    "mongodb://u:hun/ter2@h/",
    "mongodb://u:hunter2@h/?w=x",
]


@pytest.mark.parametrize("url", URLS)
async def test_a_url_that_will_not_do_is_refused_without_being_repeated(url: str) -> None:
    """By the name of its setting: it may carry a password."""
    if url.endswith("?w=x"):
        await _close(connect(url))  # an option that the server judges
        return
    with capture_logs() as logs, pytest.raises(InvalidRequest, match="PENSTOCK_MONGO_URL") as caught:
        connect(url)
    assert "hunter2" not in caught.value.message + repr(logs)
    assert caught.value.__suppress_context__


async def _close(client: Any) -> None:
    client.close()


async def test_a_cancelled_task_is_cancelled(kept: MongoStore) -> None:
    """At whatever moment of a call: a driver that loses the cancellation does not make the task immortal."""

    async def busy() -> None:
        while True:
            await kept.get(Counter, "m")

    for turns in range(60):
        await kept.get(Counter, "m")  # a connection is there
        task = asyncio.create_task(busy())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled(), f"cancelled after {turns} turns of the loop, it lives"


@pytest.mark.parametrize("instead", [None, PyMongoError("operation cancelled")], ids=["a result", "an error"])
async def test_a_cancellation_that_the_driver_makes_something_else_of_is_one(
    mongo: Mongo, instead: PyMongoError | None
) -> None:
    """Whether it gives a result in its place, or an error."""

    async def call() -> None:
        async with mongo.answering():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if instead is not None:
                    raise instead from None

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


# --- away --------------------------------------------------------------------------------------------------------

DIGEST = "a" * 64


def every_method(store: MongoStore, artifacts: MongoArtifacts) -> list[Awaitable[Any]]:
    record = Counter(model="m", last=1, revision=1)
    return [
        store.get(Counter, "m"),
        store.find(Counter),
        store.insert(record),
        store.replace(record),
        store.delete(record),
        store.revision(),
        artifacts.put(chunks(b"one"), 10),
        artifacts.fetch(DIGEST),
        artifacts.delete(DIGEST),
        artifacts.digests(),
        artifacts.sweep(),
    ]


@pytest.fixture
async def pair(own_mongo: Own, tmp_path: Path) -> AsyncIterator[list[tuple[MongoStore, MongoArtifacts]]]:
    """Store and artifacts by each driver, at a server that may be disturbed."""
    mongos = [mongo_at(f"{own_mongo.url}away", driver) for driver in sorted(DRIVERS)]
    made = [(MongoStore(mongo), MongoArtifacts(mongo, Cache(tmp_path / "cache", ALL_MEMORY))) for mongo in mongos]
    for store, _ in made:
        await answered(store.revision)
    yield made
    for mongo in mongos:
        await mongo.close()


ONE_WAIT_S = 3.5
"""Less than two of the driver's waits of 2 s one after the other; more than one, on a machine that is busy."""


async def seconds_until_unavailable(call: Awaitable[Any]) -> float:
    began = time.monotonic()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await call
    return time.monotonic() - began


async def works(store: MongoStore, artifacts: MongoArtifacts) -> None:
    await answered(store.revision)
    await answered(lambda: artifacts.put(chunks(b"one"), 10))


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_away_every_method_says_so_within_two_seconds(
    own_mongo: Own, pair: list[tuple[MongoStore, MongoArtifacts]], how: str
) -> None:
    """Refused or silent, all at once and more of them than the driver has threads; back by itself."""
    await asyncio.to_thread(own_mongo.kill if how == "killed" else own_mongo.pause)
    try:
        calls = [call for store, artifacts in pair for call in every_method(store, artifacts)]
        calls += [store.revision() for store, _ in pair for _ in range(40)]
        took = await asyncio.gather(*map(seconds_until_unavailable, calls))
    finally:
        await asyncio.to_thread(own_mongo.start if how == "killed" else own_mongo.resume)
    assert max(took) < ONE_WAIT_S
    for store, artifacts in pair:
        await works(store, artifacts)


async def test_a_repository_opens_while_mongodb_is_away(tmp_path: Path) -> None:
    """A gateway starts from its snapshot then: nothing is asked for before it is needed."""
    settings = Settings(home=tmp_path, mongo_url="mongodb://127.0.0.1:1/")
    store, artifacts = await open_repository(settings)
    took = await asyncio.gather(*map(seconds_until_unavailable, (store.revision(), artifacts.digests())))
    assert max(took) < ONE_WAIT_S
    await store.close()


async def test_a_repository_is_where_the_settings_say(mongo_url: str, tmp_path: Path) -> None:
    """In MongoDB in the database that is named; without a URL in the folder."""
    server, _, database = mongo_url.rpartition("/")
    for settings in (
        Settings(home=tmp_path, mongo_url=f"{server}/", mongo_database=database),
        Settings(home=tmp_path),
    ):
        store, artifacts = await open_repository(settings)
        await store.insert(Counter(model="m", last=1))
        digest, _ = await artifacts.put(chunks(b"one"), 10)
        assert (await artifacts.fetch(digest)).is_relative_to(tmp_path)
        await store.close()
    with MongoClient[dict[str, Any]](server) as client:
        assert client[database].records.count_documents({}) == 1
    assert (tmp_path / "repository.sqlite").exists()
