"""The repository's records in MongoDB: one document a record, written by compare-and-set on its revision.

Nothing beyond single documents is asked of the server: no transactions, change streams, TTL or partial indexes. What
a caller names (keys, models) only ever stands as the value of an equality, and what it stores is one string of JSON:
no value can become an operator or a field name. Writes are acknowledged by a majority, journalled; reads see only what
a majority has, so nothing that was read is rolled back.

How `revision()` misses no write. It reads one document, the clock. A write and its count are two documents, and the
writer may die between them; counted before, a reader could see the count and not yet the write; counted after, the
write of a writer that died would never be noticed. So each write leaves a `mark` in the record, in the same atomic
step that changes it. Then it is counted, and only then the mark is wiped. Whoever sees count N sees the N writes, for
each stood before it was counted. A mark that outlives its writer is found by those who poll: seen twice, SETTLE_S
apart, it is counted and wiped by them. Counting twice does no harm: it costs a reader one more look. A deletion takes
the same way: the record is `gone`, for every reader, counted, then removed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import structlog
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorClient
from msgspec.structs import replace
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import ConfigurationError, DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from core.errors import Conflict, InvalidRequest, PenstockError, Unavailable
from repository.decoding import Reader, counted
from repository.records import Record
from repository.store import R
from repository.uncancelled import Uncancelled

Document = dict[str, Any]
Client = AsyncIOMotorClient[Document] | AsyncMongoClient[Document]
Collection = AsyncCollection[Document]

WITHIN_S = 1.9
"""Seconds after which a call that got no answer is Unavailable."""
SETTLE_S = 2.5
"""Seconds between two looks for writes that nobody counted; longer than a living writer needs to count its own."""
FORMAT = 1
"""Of the documents below."""
CLOCK = "clock"
REFUSED = frozenset({13, 18, 8000})
"""Codes by which a server says that the credentials do not do."""

AS_IT_IS: CodecOptions[Document] = CodecOptions(
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""What no Python value can be is that of one document: it does not end the reading of the others."""

log = structlog.get_logger(__name__)


def connect(url: str) -> Client:
    """A client of motor's; nothing is sent before it is used. Raises InvalidRequest for a URL that will not do."""
    return connected(AsyncIOMotorClient, url)


def connected(driver: type[Any], url: str) -> Client:
    """A client by motor's class or by PyMongo's own."""
    milliseconds = int(WITHIN_S * 900)
    try:
        client: Client = driver(
            url,
            appname="penstock",
            timeoutMS=milliseconds,
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
        )
    except (PyMongoError, ValueError, TypeError) as error:  # they repeat parts of the URL: not to be shown or logged
        said = "an option is not understood" if isinstance(error, ConfigurationError) else "it cannot be parsed"
        raise InvalidRequest(f"PENSTOCK_MONGO_URL is no URL of MongoDB's: {said}") from None
    return client


class Mongo:
    """One database, through motor's client or PyMongo's: their calls have the same shape, but for `close`."""

    def __init__(self, client: Client, database: str) -> None:
        self._client = client
        self._database = client.get_database(
            database,
            codec_options=AS_IT_IS,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", j=True),
        )

    def collection(self, name: str) -> Collection:
        return cast(Collection, Uncancelled(self._database.get_collection(name)))

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """What is asked of the server in here is answered within WITHIN_S, or raises Unavailable."""
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(WITHIN_S):
                yield
        except (PyMongoError, BSONError, TimeoutError, UnicodeError, OverflowError, RuntimeError) as error:
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError from error
            raise _translated(error) from error
        if task.cancelling() > cancelled:  # lost in the driver: Python 3.11's wait_for prefers a result that is ready
            raise asyncio.CancelledError

    async def close(self) -> None:
        closing = self._client.close()
        if closing is not None:
            await closing


class MongoStore:
    """`Store` in the collections `records` and `clock`. `now` gives monotonic seconds."""

    def __init__(self, mongo: Mongo, now: Callable[[], float] = time.monotonic) -> None:
        self._mongo = mongo
        self._records = mongo.collection("records")
        self._clock = mongo.collection(CLOCK)
        self._now = now
        self._reader = Reader()
        self._prepared = False
        self._uncounted: frozenset[str] = frozenset()
        self._look_at = now()

    async def get(self, kind: type[R], key: str) -> R | None:
        async with self._mongo.answering():
            found = await self._records.find_one({"_id": _id(kind, key), "gone": False})
        return None if found is None else self._reader.one(kind, key, found.get("body"))

    async def find(self, kind: type[R], model: str | None = None) -> list[R]:
        async with self._mongo.answering():
            found = await self._records.find(_where(kind, model)).sort([("seq", 1), ("_id", 1)]).to_list(None)
        return self._reader.all(kind, ((_key(kind, document), document.get("body")) for document in found))

    async def count(self, kind: type[R], model: str | None = None) -> int:
        async with self._mongo.answering():
            return await self._records.count_documents(_where(kind, model))

    async def insert(self, record: R) -> R:
        stored = replace(record, revision=1)
        async with self._mongo.answering():
            await self._prepare()
            await self._settle(await self._insert(stored))
        return stored

    async def replace(self, record: R) -> R:
        stored = replace(record, revision=record.revision + 1)
        change = {"revision": stored.revision, "body": _body(stored), "mark": _mark(stored)}
        async with self._mongo.answering():
            await self._change(record, change)
        return stored

    async def delete(self, record: R) -> None:
        async with self._mongo.answering():
            await self._change(record, {"gone": True, "mark": secrets.token_hex(8)})

    async def revision(self) -> int:
        async with self._mongo.answering():
            await self._prepare()
            if self._now() >= self._look_at:
                await self._look()
            return await self._counted()

    async def close(self) -> None:
        await self._mongo.close()

    async def _insert(self, stored: Record) -> Document:
        while True:
            document = _document(stored, await self._counted() + 1)
            try:
                await self._records.insert_one(document)
                return document
            except DuplicateKeyError:
                there = await self._records.find_one({"_id": document["_id"]})
                if there is None:
                    continue
                if there.get("gone") is not True:
                    raise Conflict(f"there is a {stored.kind} {stored.key!r} already") from None
                if not _is_marked(there):
                    raise Unavailable(f"the {stored.kind} {stored.key!r} in the repository is damaged") from None
                await self._settle(there)

    async def _change(self, record: Record, change: Document) -> None:
        key = _id(type(record), record.key)
        seen = {"_id": key, "revision": record.revision, "gone": False}
        if not (await self._records.update_one(seen, {"$set": change})).matched_count:
            raise Conflict(f"the {record.kind} {record.key!r} was changed or deleted by somebody else meanwhile")
        await self._settle({"_id": key, "gone": False, **change})

    async def _settle(self, written: Document) -> None:
        """Count a write, then wipe its mark (of a deletion: remove the record). Never in another order."""
        if not written["mark"]:
            return
        await self._clock.update_one({"_id": CLOCK}, {"$inc": {"revision": 1}})
        this = {"_id": written["_id"], "mark": written["mark"]}
        if written["gone"]:
            await self._records.delete_one(this)
        else:
            await self._records.update_one(this, {"$set": {"mark": ""}})

    async def _look(self) -> None:
        """Settle what was not counted at the last look already: its writer is no more."""
        self._look_at = self._now() + SETTLE_S
        marked = await self._records.find({"mark": {"$gt": ""}}, {"mark": 1, "gone": 1}).to_list(None)
        ours = [document for document in marked if _is_marked(document)]
        for document in ours:
            if document["mark"] in self._uncounted:
                await self._settle(document)
        self._uncounted = frozenset(document["mark"] for document in ours)

    async def _counted(self) -> int:
        return counted((await self._read_clock()).get("revision"))

    async def _read_clock(self) -> Document:
        found = await self._clock.find_one({"_id": CLOCK})
        if found is None:
            await self._clock.update_one(
                {"_id": CLOCK}, {"$setOnInsert": {"revision": 0, "format": FORMAT}}, upsert=True
            )
            return await self._read_clock()
        return found

    async def _prepare(self) -> None:
        """Once: see that the database is ours, and index it."""
        if self._prepared:
            return
        known = (await self._read_clock()).get("format")
        if known != FORMAT:
            raise Unavailable(f"the repository has format {known}, this server knows format {FORMAT}")
        await self._records.create_index([("kind", 1), ("seq", 1)])
        await self._records.create_index([("kind", 1), ("model", 1), ("seq", 1)])
        await self._records.create_index([("mark", 1)])
        self._prepared = True


def _id(kind: type[Record], key: str) -> str:
    """Unique by the index that every collection has; no kind has a slash in it."""
    return f"{kind.kind}/{_text(key)}"


def _key(kind: type[Record], document: Document) -> object:
    """The key of a document that says it is of this kind; of one whose id says otherwise that, which is no key."""
    name, prefix = document["_id"], f"{kind.kind}/"
    return name.removeprefix(prefix) if isinstance(name, str) and name.startswith(prefix) else (name,)


def _where(kind: type[Record], model: str | None) -> Document:
    """Those of a kind, of one model where it is named, that are there."""
    where: Document = {"kind": kind.kind, "gone": False}
    return where if model is None else {**where, "model": _text(model)}


def _is_marked(document: Document) -> bool:
    """Whether a writer of ours left its mark; what others put there is neither counted nor removed."""
    mark = document.get("mark")
    return isinstance(document.get("gone"), bool) and isinstance(mark, str) and bool(mark)


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest("a key is text")
    return value


def _mark(record: Record) -> str:
    return secrets.token_hex(8) if record.counted else ""


def _body(record: Record) -> str:
    return msgspec.json.encode(record).decode()


def _document(record: Record, seq: int) -> Document:
    return {
        "_id": _id(type(record), record.key),
        "kind": record.kind,
        "model": getattr(record, "model", ""),
        "seq": seq,
        "revision": record.revision,
        "gone": False,
        "mark": _mark(record),
        "body": _body(record),
    }


def _translated(error: Exception) -> PenstockError:
    if not isinstance(error, PyMongoError | TimeoutError | RuntimeError):  # the last: PyMongo's lock, when cancelled
        return InvalidRequest("the repository cannot keep such a value")
    if not isinstance(error, OperationFailure):
        log.debug("repository_away", error=repr(error))
        return Unavailable("the repository's database cannot be reached")
    log.error("repository_failed", error=repr(error))
    refused = "refuses the credentials" if error.code in REFUSED else "cannot be used"
    return Unavailable(f"the repository's database {refused}")
