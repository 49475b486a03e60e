"""Artifacts in GridFS: whole or not there, whoever dies when."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import gridfs
import pytest
from pymongo import MongoClient

from core.errors import InvalidRequest, NotFound, Unavailable
from repository.cache import Cache
from repository.gridfs import CHUNK, MongoArtifacts
from repository.mongo import Mongo
from tests.repository.conftest import ALL_MEMORY, BEAT_S, PATIENCE_S
from tests.repository.scripted import chunks, files_of

MANY = 1 << 40


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def artifacts_of(mongo: Mongo, folder: Path, beat: float = BEAT_S) -> MongoArtifacts:
    return MongoArtifacts(mongo, Cache(folder, ALL_MEMORY), beat, PATIENCE_S)


@pytest.fixture
def kept(mongo: Mongo, tmp_path: Path) -> MongoArtifacts:
    """On one host."""
    return artifacts_of(mongo, tmp_path / "cache")


@pytest.fixture
def elsewhere(mongo: Mongo, tmp_path: Path) -> MongoArtifacts:
    """The same database, on another host."""
    return artifacts_of(mongo, tmp_path / "elsewhere")


async def test_every_gridfs_tool_reads_an_artifact(kept: MongoArtifacts, mongo_url: str) -> None:
    """By its digest as the file's name, over more than one chunk."""
    content = os.urandom(2 * CHUNK + 5)
    digest, _ = await kept.put(chunks(content), MANY)
    server, _, database = mongo_url.rpartition("/")
    with MongoClient[dict[str, Any]](server) as client:
        bucket = gridfs.GridFSBucket(client[database], "artifacts")
        assert bucket.open_download_stream_by_name(digest).read() == content


async def test_another_host_has_it_too(kept: MongoArtifacts, elsewhere: MongoArtifacts) -> None:
    """Downloaded, verified, read-only; then it is there, whatever becomes of the database."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    path = await elsewhere.fetch(digest)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o400)
    await kept.delete(digest)
    assert await elsewhere.fetch(digest) == path
    with pytest.raises(NotFound):
        await kept.fetch(digest)


WRITER = """
import asyncio, sys
from pathlib import Path
from repository.cache import Cache
from repository.gridfs import MongoArtifacts
from repository.mongo import Mongo, connect

async def chunks():
    yield bytes(3 << 20)
    print("writing", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    yield b"end"

async def main():
    mongo = Mongo(connect(sys.argv[1]), sys.argv[2])
    artifacts = MongoArtifacts(mongo, Cache(Path(sys.argv[3]), 1 << 30), float(sys.argv[4]))
    print((await artifacts.put(chunks(), 1 << 30))[0])
    await mongo.close()

asyncio.run(main())
"""


@pytest.fixture
def writer(mongo_url: str, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of an upload until it gets a line."""
    server, _, database = mongo_url.rpartition("/")
    command = [sys.executable, "-c", WRITER, f"{server}/", database, str(tmp_path / "writer"), str(BEAT_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


@pytest.mark.parametrize("mongo", ["motor"], indirect=True)
async def test_a_writer_killed_in_its_upload_leaves_nothing_after_a_sweep(
    kept: MongoArtifacts, writer: subprocess.Popen[str]
) -> None:
    """Nor anything readable before."""
    writer.kill()
    writer.wait()
    assert await kept.digests() == []
    assert len(await files_of(kept)) == 1
    async with asyncio.timeout(20):
        while not (swept := await kept.sweep()):  # its last sign of life may still be on its way into the database
            pass
    assert swept == 1
    assert await files_of(kept) == set()


@pytest.mark.parametrize("mongo", ["motor"], indirect=True)
async def test_a_sweep_spares_a_living_writer_of_another_process(
    kept: MongoArtifacts, writer: subprocess.Popen[str]
) -> None:
    """Though it has not had a byte for long; its upload becomes an artifact."""
    kept._patience = 10 * PATIENCE_S  # for one of another process, on a machine that is busy
    assert await kept.sweep() == 0
    output, _ = await asyncio.to_thread(writer.communicate, "\n")
    digest = output.splitlines()[-1]  # after what it may have logged
    assert digest == sha(bytes(3 << 20) + b"end")
    assert await kept.digests() == [digest]


async def test_a_writer_taken_for_dead_says_so(kept: MongoArtifacts, mongo: Mongo, tmp_path: Path) -> None:
    """When it could not show itself for long: Unavailable, and nothing is left of its upload, or readable."""
    silent = artifacts_of(mongo, tmp_path / "silent", beat=1000.0)
    begun, swept = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield bytes(CHUNK)
        begun.set()
        await swept.wait()
        yield bytes(CHUNK)

    put = asyncio.create_task(silent.put(stalled(), MANY))
    await begun.wait()
    assert await kept.sweep() == 1
    swept.set()
    with pytest.raises(Unavailable, match="abandoned"):
        await put
    assert await files_of(kept) == set()


async def test_between_a_sweeps_look_and_its_deed_a_writer_may_beat(kept: MongoArtifacts) -> None:
    """Then it is spared; and where the deed came first, but is not done yet, the upload is not committed."""

    async def stream() -> AsyncIterator[bytes]:
        yield bytes(CHUNK)
        (file,) = await kept._files.find({}).to_list(None)
        assert not await kept._mend(file["_id"], "incoming", "", beat=-1)
        assert await kept._move(file["_id"], "incoming", "gone")

    with pytest.raises(Unavailable, match="abandoned"):
        await kept.put(stream(), MANY)
    assert await files_of(kept) == set()


DAMAGES: dict[str, Any] = {"other bytes": b"two", "no bytes": b"", "no binary": {"ne": 1}}


@pytest.mark.parametrize("damage", [*DAMAGES, "no chunk"])
async def test_a_damaged_artifact_is_refused_and_healed_by_a_push(
    kept: MongoArtifacts, elsewhere: MongoArtifacts, damage: str
) -> None:
    """Nothing of the wrong content stands under the digest; the same content pushed again replaces it."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    if damage == "no chunk":
        await kept._chunks.delete_many({})
    else:
        await kept._chunks.update_many({}, {"$set": {"data": DAMAGES[damage]}})
    with pytest.raises(InvalidRequest, match="damaged"):
        await elsewhere.fetch(digest)
    await kept.put(chunks(b"one"), MANY)
    assert (await elsewhere.fetch(digest)).read_bytes() == b"one"
    assert await files_of(kept) == {digest}


async def test_many_that_push_the_same_leave_one_that_can_be_read(
    kept: MongoArtifacts, elsewhere: MongoArtifacts
) -> None:
    """Nobody's copy is taken away without another in its place."""
    content = os.urandom(1000)
    await asyncio.gather(*(kept.put(chunks(content), MANY) for _ in range(8)))
    assert await kept.digests() == [sha(content)]
    assert (await elsewhere.fetch(sha(content))).read_bytes() == content


async def test_a_copy_that_was_committed_later_is_left_alone(kept: MongoArtifacts) -> None:
    """Of two pushes of the same content at once only the earlier copy goes, so that one always stays."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    await kept._files.update_one({"filename": digest}, {"$set": {"metadata.order": 100}})
    await kept.put(chunks(b"one"), MANY)
    orders = {file["metadata"]["order"] for file in await kept._files.find({"filename": digest}).to_list(None)}
    assert orders == {2, 100}


async def test_a_deletion_that_crashed_is_undone_by_the_sweep(kept: MongoArtifacts, elsewhere: MongoArtifacts) -> None:
    """Until then it is out of sight, and can be read all the same: it may be in use."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    (file,) = await kept._files.find({}).to_list(None)
    assert await kept._move(file["_id"], "stored", "leaving", set_mark="crashed")
    assert await kept.digests() == []
    assert await elsewhere.fetch(digest)
    assert await kept.sweep() == 1
    assert await kept.digests() == [digest]


async def test_who_cannot_ask_for_uses_does_not_wait_to_put_the_artifact_back(kept: MongoArtifacts) -> None:
    """The database that did not answer the one would not answer the other: a call waits for it once."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    answering = asyncio.Event()

    async def used() -> bool:
        raise Unavailable("away")

    class Slow(MongoArtifacts):
        async def _decide(self, hidden: list[str], mark: str, back: bool) -> None:
            await answering.wait()
            await super()._decide(hidden, mark, back)

    slow = Slow(kept._mongo, kept._cache)
    with pytest.raises(Unavailable):
        await slow.delete(digest, used)
    assert await kept.digests() == []
    answering.set()
    await asyncio.wait(slow._returning)
    assert await kept.digests() == [digest]


async def test_a_push_during_a_deletion_keeps_its_own_copy(kept: MongoArtifacts) -> None:
    """Though the deletion was asked for before, and is decided after."""
    digest, _ = await kept.put(chunks(b"one"), MANY)

    async def used() -> bool:
        await kept.put(chunks(b"one"), MANY)
        return False

    await kept.delete(digest, used)
    assert await kept.digests() == [digest]
    assert await files_of(kept) == {digest}


@pytest.mark.parametrize("left", [0, 1, 2, 5])
async def test_a_removal_that_crashed_is_ended_by_the_sweep(
    kept: MongoArtifacts, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stopped: chunks go from the last to the first."""
    monkeypatch.setattr("repository.gridfs.CHUNK", 1000)
    await kept.put(chunks(bytes(5000)), MANY)
    (file,) = await kept._files.find({}).to_list(None)
    assert await kept._move(file["_id"], "stored", "gone")
    await kept._chunks.delete_many({"n": {"$gte": left}})
    assert await kept.sweep() == 1
    assert await files_of(kept) == set()


async def test_a_sweep_of_nothing_takes_no_time(kept: MongoArtifacts, mongo: Mongo, tmp_path: Path) -> None:
    """It waits only where something is under way or left behind: an hour here."""
    await kept.put(chunks(b"one"), MANY)
    patient = MongoArtifacts(mongo, Cache(tmp_path / "cache", ALL_MEMORY), BEAT_S, 3600.0)
    assert await asyncio.wait_for(patient.sweep(), 10) == 0
