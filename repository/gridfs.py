"""Artifacts in MongoDB, in GridFS's layout: a document in `artifacts.files`, its content in `artifacts.chunks`.

The file's document is there first and says what stands behind it; each change of its `state` is one compare-and-set:

    INCOMING ── commit ──► STORED ◄── still used ── LEAVING        an upload is INCOMING until its last chunk stands
        │                    │ └──── deletion ────────►│           LEAVING is out of sight while it is asked for uses
        └─ crashed ──► GONE ◄┘ newer copy     unused ──┘           GONE is nobody's: its chunks go, then its document

So nothing half-written is ever found under a digest, whoever dies when. A living writer raises the `beat` of its
document; a sweep looks twice, `patience` seconds apart by its own clock, and takes what has not moved for abandoned. A
writer that was taken for dead finds its document GONE when it commits, and says so. Pushed again, content is stored
anew and replaces the earlier copy: so a damaged one heals.

The driver's own bucket is not used: it gathers 32 MB before each write, which is neither a bound on memory nor a write
that ends in time. Each chunk's `_id` is its file's and its number: found by the one index that is always there.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from bson import Int64
from pymongo import ReturnDocument

from core.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from repository.artifacts import DIGEST
from repository.cache import Cache
from repository.mongo import Document, Mongo
from repository.store import Used

INCOMING, STORED, LEAVING, GONE = "incoming", "stored", "leaving", "gone"
CHUNK = 1 << 20
"""Bytes of one chunk: what one write carries, and what a put or a fetch holds in memory."""
BEAT_S, PATIENCE_S = 1.0, 6.0
"""Seconds between a writer's signs of life, and those without one after which it is taken for dead."""

log = structlog.get_logger(__name__)


class MongoArtifacts:
    """`Artifacts` in one database; fetched files stand in `cache`. `beat`, `patience`: see BEAT_S, PATIENCE_S."""

    def __init__(self, mongo: Mongo, cache: Cache, beat: float = BEAT_S, patience: float = PATIENCE_S) -> None:
        self._mongo = mongo
        self._cache = cache
        self._beat = beat
        self._patience = patience
        self._files = mongo.collection("artifacts.files")
        self._chunks = mongo.collection("artifacts.chunks")
        self._numbers = mongo.collection("clock")
        self._prepared = False
        self._returning: set[asyncio.Task[None]] = set()

    async def put(self, chunks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        """Store a stream; returns (digest, bytes). Raises TooLarge beyond `limit`, Unavailable when MongoDB is away.

        Whatever `chunks` raises is passed on; nothing is left behind then.
        """
        file = secrets.token_hex(12)
        beating = asyncio.create_task(self._live(file))
        try:
            await self._begin(file)
            digest, size = await self._write(file, chunks, limit)
            await self._commit(file, digest, size)
            return digest, size
        except Unavailable:  # a sweep clears up later: the caller need not wait for what does not answer
            raise
        except BaseException:
            with suppress(Unavailable):
                await asyncio.shield(self._retire(file, INCOMING))
            raise
        finally:
            beating.cancel()

    async def fetch(self, digest: str) -> Path:
        _check(digest)
        path = await self._cache.find(digest)
        tried: set[str] = set()
        while path is None:
            copies = await self._copies(digest)
            copy = next((copy for copy in copies if copy["_id"] not in tried), None)
            if copy is None:
                raise _missing(digest, damaged=bool(copies))
            tried.add(copy["_id"])
            with suppress(InvalidRequest):  # damaged, or replaced by a newer copy while it was read
                path = await self._cache.fetch(digest, int(copy["length"]), partial(self._read, copy))
        return path

    async def delete(self, digest: str, used: Used | None = None) -> None:
        """Forget the artifact; missing is fine. `used` is asked once it is out of sight: True puts it back.

        Content that is pushed again meanwhile is a copy of its own, and stays.
        """
        _check(digest)
        mark = secrets.token_hex(8)
        async with self._mongo.answering():
            copies = await self._listed({"filename": digest, "metadata.state": STORED})
            moved = {copy["_id"]: await self._move(copy["_id"], STORED, LEAVING, set_mark=mark) for copy in copies}
        hidden = [file for file, was_here in moved.items() if was_here]
        if not hidden:
            return
        try:
            back = used is not None and await used()
        except Unavailable:  # the caller has waited for what does not answer: not again
            self._put_back_later(hidden, mark)
            raise
        except BaseException:
            await asyncio.shield(self._decide(hidden, mark, True))
            raise
        await asyncio.shield(self._decide(hidden, mark, back))

    async def digests(self) -> list[str]:
        async with self._mongo.answering():
            return sorted({copy["filename"] for copy in await self._listed({"metadata.state": STORED})})

    async def sweep(self) -> int:
        """Remove what crashed writers left, put back what crashed deletions hid; returns how many files.

        Takes `patience` seconds where anything is under way or left behind, else none.
        """
        before = await self._unsettled()
        if not before:
            return 0
        await asyncio.sleep(self._patience)
        now = await self._unsettled()
        return sum([await self._mend(file, *now[file]) for file in now if before.get(file) == now[file]])

    # --- putting --------------------------------------------------------------------------------------------------

    async def _begin(self, file: str) -> None:
        async with self._mongo.answering():
            if not self._prepared:
                await self._files.create_index([("filename", 1), ("uploadDate", 1)])
                await self._chunks.create_index([("files_id", 1), ("n", 1)], unique=True)
                self._prepared = True
            metadata = {"state": INCOMING, "beat": 0, "mark": "", "order": Int64(0)}
            await self._files.insert_one(
                {
                    "_id": file,
                    "filename": "",
                    "length": Int64(0),
                    "chunkSize": CHUNK,
                    "uploadDate": datetime.now(UTC),
                    "metadata": metadata,
                }
            )

    async def _live(self, file: str) -> None:
        while True:
            await asyncio.sleep(self._beat)
            with suppress(Unavailable):
                async with self._mongo.answering():
                    await self._files.update_one({"_id": file}, {"$inc": {"metadata.beat": 1}})

    async def _write(self, file: str, chunks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        content, size, number = hashlib.sha256(), 0, 0
        async for piece in _cut(chunks, limit):
            content.update(piece)
            size += len(piece)
            async with self._mongo.answering():
                await self._chunks.insert_one(
                    {"_id": _chunk(file, number), "files_id": file, "n": number, "data": piece}
                )
            number += 1
        return content.hexdigest(), size

    async def _commit(self, file: str, digest: str, size: int) -> None:
        """Let the artifact appear under its digest; earlier copies go."""
        async with self._mongo.answering():
            order = await self._next()
            change = {
                "filename": digest,
                "length": Int64(size),
                "metadata.state": STORED,
                "metadata.order": Int64(order),
            }
            stored = await self._files.update_one({"_id": file, "metadata.state": INCOMING}, {"$set": change})
            earlier = await self._listed({"filename": digest, "metadata.state": STORED})
        if not stored.matched_count:
            await self._remove(file, -(-size // CHUNK))
            raise Unavailable("the upload was taken for abandoned: push again")
        for copy in earlier:
            if copy["metadata"]["order"] < order:
                await self._retire(copy["_id"], STORED)

    async def _next(self) -> int:
        """A number higher than that of every artifact committed before."""
        counted = await self._numbers.find_one_and_update(
            {"_id": "artifacts"}, {"$inc": {"count": Int64(1)}}, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert counted is not None
        return int(counted["count"])

    # --- fetching -------------------------------------------------------------------------------------------------

    async def _copies(self, digest: str) -> list[Document]:
        """The newest first. One that is LEAVING can still be read: it may be put back."""
        async with self._mongo.answering():
            copies = await self._listed({"filename": digest, "metadata.state": {"$in": [STORED, LEAVING]}})
        return sorted(copies, key=lambda copy: -int(copy["metadata"]["order"]))

    async def _read(self, copy: Document) -> AsyncIterator[bytes]:
        for number in range(-(-int(copy["length"]) // int(copy["chunkSize"]))):
            async with self._mongo.answering():
                chunk = await self._chunks.find_one({"_id": _chunk(copy["_id"], number)})
            if chunk is None or not isinstance(chunk["data"], bytes):
                return
            yield chunk["data"]

    # --- states ---------------------------------------------------------------------------------------------------

    async def _listed(self, where: Document) -> list[Document]:
        return await self._files.find(where).to_list(None)

    async def _move(self, file: str, state: str, to: str, mark: str = "", set_mark: str = "") -> bool:
        """One step of the picture above; False where somebody else has made another meanwhile."""
        seen = {"_id": file, "metadata.state": state, "metadata.mark": mark}
        change = {"metadata.state": to, "metadata.mark": set_mark}
        return bool((await self._files.update_one(seen, {"$set": change})).matched_count)

    async def _decide(self, hidden: list[str], mark: str, back: bool) -> None:
        for file in hidden:
            if back:
                async with self._mongo.answering():
                    await self._move(file, LEAVING, STORED, mark)
            else:
                await self._retire(file, LEAVING, mark)

    def _put_back_later(self, hidden: list[str], mark: str) -> None:
        """If it can be done; else a sweep does it."""

        async def put_back() -> None:
            with suppress(Unavailable):
                await self._decide(hidden, mark, True)

        task = asyncio.create_task(put_back())
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _retire(self, file: str, state: str, mark: str = "") -> bool:
        async with self._mongo.answering():
            moved = await self._move(file, state, GONE, mark)
        if moved:
            await self._remove(file)
        return moved

    async def _remove(self, file: str, chunks: int | None = None) -> None:
        """Chunks from the last to the first, so that wherever this stops the rest is still found by its numbers.

        Each in a call of its own, which ends in time: FerretDB on SQLite reads the whole collection for it.
        """
        count = await self._count(file) if chunks is None else chunks
        for number in reversed(range(count)):
            async with self._mongo.answering():
                await self._chunks.delete_one({"_id": _chunk(file, number)})
        async with self._mongo.answering():
            await self._files.delete_one({"_id": file, "metadata.state": GONE})

    async def _count(self, file: str) -> int:
        """How many chunks there are: they are numbered from 0 without a gap, so halving finds the end."""
        low, high = 0, 1
        while await self._has(file, high - 1):
            low, high = high, high * 2
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if await self._has(file, middle) else (low, middle)
        return low

    async def _has(self, file: str, number: int) -> bool:
        async with self._mongo.answering():
            return await self._chunks.find_one({"_id": _chunk(file, number)}, {"_id": 1}) is not None

    async def _unsettled(self) -> dict[str, tuple[str, str, int]]:
        """File → state, mark and beat of what is neither stored nor removed."""
        async with self._mongo.answering():
            files = await self._listed({"metadata.state": {"$in": [INCOMING, LEAVING, GONE]}})
        told = ((file["_id"], file["metadata"]) for file in files)
        return {file: (said["state"], said["mark"], said["beat"]) for file, said in told}

    async def _mend(self, file: str, state: str, mark: str, beat: int) -> bool:
        """End what has not moved. A writer that beats after all keeps its file."""
        log.info("artifact_swept", file=file, state=state)
        if state == GONE:
            await self._remove(file)
            return True
        async with self._mongo.answering():
            seen: dict[str, Any] = {"_id": file, "metadata.state": state, "metadata.mark": mark, "metadata.beat": beat}
            to = STORED if state == LEAVING else GONE
            changed = await self._files.update_one(seen, {"$set": {"metadata.state": to, "metadata.mark": ""}})
        if changed.matched_count and to == GONE:
            await self._remove(file)
        return bool(changed.matched_count)


async def _cut(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    """The stream in pieces of CHUNK bytes, the last one shorter. Raises TooLarge at the first chunk beyond `limit`."""
    gathered, size = bytearray(), 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the artifact exceeds {limit} bytes")
        gathered += chunk
        while len(gathered) >= CHUNK:
            yield bytes(memoryview(gathered)[:CHUNK])
            del gathered[:CHUNK]
    if gathered:
        yield bytes(gathered)


def _chunk(file: str, number: int) -> str:
    return f"{file}/{number}"


def _check(digest: str) -> None:
    if not DIGEST.match(digest):
        raise InvalidRequest("an artifact's digest is 64 hexadecimal digits")


def _missing(digest: str, damaged: bool) -> NotFound | InvalidRequest:
    if damaged:
        log.error("artifact_damaged", digest=digest)
        return InvalidRequest(f"the artifact {digest[:12]}… is damaged: its content does not match its digest")
    return NotFound(f"the artifact {digest[:12]}… is missing from the repository")
