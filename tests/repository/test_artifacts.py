"""What every keeper of artifacts promises, and what is particular to files."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from repository import artifacts as files
from repository.artifacts import FileArtifacts
from repository.store import Artifacts
from tests.repository.conftest import BACKENDS
from tests.repository.scripted import WITHIN_S, chunks, eventually, files_of

MANY = 1 << 40
ODD = ["", "..", "../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 63 + "/", "%2e" * 10]


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """Every implementation, and MongoDB's through each driver."""
    return str(request.param)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_an_artifact_comes_back_under_its_digest(artifacts: Artifacts) -> None:
    """However it was cut into chunks, empty ones included."""
    content = os.urandom(3 << 20)
    parts = (content[:1], b"", content[1:70_000], content[70_000:])
    assert await artifacts.put(chunks(*parts), MANY) == (sha(content), len(content))
    path = await artifacts.fetch(sha(content))
    assert path.read_bytes() == content
    assert await artifacts.digests() == [sha(content)]


async def test_the_same_content_is_stored_once(artifacts: Artifacts) -> None:
    """Pushing it again is fine and changes nothing."""
    for _ in range(2):
        await artifacts.put(chunks(b"one"), MANY)
    assert await artifacts.digests() == [sha(b"one")]
    assert await files_of(artifacts) == {sha(b"one")}


async def test_an_empty_artifact_is_an_artifact(artifacts: Artifacts) -> None:
    """Whether it makes a model is for others to say."""
    assert await artifacts.put(chunks(), MANY) == (sha(b""), 0)


async def test_a_stream_beyond_the_limit_is_cut_off(artifacts: Artifacts) -> None:
    """TooLarge at the first byte too many, whatever is still to come; nothing stays."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1 << 20)

    with pytest.raises(TooLarge, match="4194304"):
        await artifacts.put(endless(), 4 << 20)
    assert taken == 5
    assert await files_of(artifacts) == set()
    await artifacts.put(chunks(b"1234"), 4)


async def test_what_the_stream_raises_is_passed_on_and_nothing_stays(artifacts: Artifacts) -> None:
    """A client that leaves in the middle leaves nothing behind."""

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(3 << 20)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await artifacts.put(broken(), MANY)
    assert await files_of(artifacts) == set()


async def test_a_cancelled_put_leaves_nothing(artifacts: Artifacts) -> None:
    """Neither under a digest nor under another name."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield bytes(3 << 20)
        begun.set()
        await never.wait()

    put = asyncio.create_task(artifacts.put(stalled(), MANY))
    await begun.wait()
    assert len(await files_of(artifacts)) == 1
    put.cancel()
    await asyncio.wait([put])
    assert put.cancelled()
    assert await files_of(artifacts) == set()


async def test_a_large_artifact_is_never_whole_in_memory(artifacts: Artifacts) -> None:
    """16 MiB pass in a few."""

    async def large() -> AsyncIterator[bytes]:
        for _ in range(256):
            yield bytes(1 << 16)

    tracemalloc.start()
    try:
        await artifacts.put(large(), MANY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


async def test_a_missing_artifact_is_not_found(artifacts: Artifacts) -> None:
    """The message says which, in short, and nothing of where it is kept."""
    with pytest.raises(NotFound, match="aaaaaaaaaaaa… is missing"):
        await artifacts.fetch("a" * 64)


@pytest.mark.parametrize("digest", ODD)
async def test_path_traversal_by_digest_is_refused(artifacts: Artifacts, digest: str) -> None:
    """Nothing but 64 hexadecimal digits ever becomes a path."""
    for attempt in (artifacts.fetch(digest), artifacts.delete(digest)):
        with pytest.raises(InvalidRequest, match="64 hexadecimal"):
            await attempt


async def test_a_deleted_artifact_is_gone_and_missing_ones_are_fine(artifacts: Artifacts) -> None:
    """delete leaves nothing, of the artifact or of the deletion."""
    digest, _ = await artifacts.put(chunks(b"one"), MANY)
    await artifacts.delete(digest)
    await artifacts.delete(digest)
    assert await artifacts.digests() == []
    assert await files_of(artifacts) == set()


@pytest.mark.parametrize("still_used", [True, False])
async def test_a_deletion_asks_once_the_artifact_is_out_of_sight(artifacts: Artifacts, still_used: bool) -> None:
    """A record that came meanwhile gets its artifact back."""
    digest, _ = await artifacts.put(chunks(b"one"), MANY)
    seen: list[list[str]] = []

    async def used() -> bool:
        seen.append(await artifacts.digests())
        return still_used

    await artifacts.delete(digest, used)
    assert seen == [[]]
    assert await artifacts.digests() == ([digest] if still_used else [])


async def test_a_deletion_that_cannot_ask_puts_the_artifact_back(artifacts: Artifacts) -> None:
    """When the store fails in the middle nothing is lost."""
    digest, _ = await artifacts.put(chunks(b"one"), MANY)

    async def used() -> bool:
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        await artifacts.delete(digest, used)
    async with asyncio.timeout(WITHIN_S):  # whoever has waited for an absent store does not wait for this too
        while await artifacts.digests() != [digest]:
            await asyncio.sleep(0.01)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def kept(folder: Path) -> FileArtifacts:
    return FileArtifacts(folder)


async def test_a_stored_file_is_read_only_and_private(kept: FileArtifacts, folder: Path) -> None:
    """0400 in a folder of 0700."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    assert (folder / digest).stat().st_mode & 0o777 == 0o400
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"two", b"one more"])
async def test_a_damaged_artifact_is_refused_at_every_load(kept: FileArtifacts, folder: Path, damage: bytes) -> None:
    """The digest is taken anew each time; pushing the same content again heals it."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    assert await kept.fetch(digest)
    (folder / digest).chmod(0o600)
    (folder / digest).write_bytes(damage)
    with pytest.raises(InvalidRequest, match="damaged") as caught:
        await kept.fetch(digest)
    assert str(folder) not in caught.value.message
    await kept.put(chunks(b"one"), MANY)
    assert (await kept.fetch(digest)).read_bytes() == b"one"


async def test_a_symbolic_link_is_not_followed(kept: FileArtifacts, folder: Path, tmp_path: Path) -> None:
    """Not even to a file of the right content; nor is anything but a regular file opened."""
    digest = sha(b"elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"elsewhere")
    folder.mkdir()
    (folder / digest).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidRequest, match="damaged"):
        await kept.fetch(digest)
    await kept.delete(digest)
    assert (tmp_path / "elsewhere").read_bytes() == b"elsewhere"
    os.mkfifo(folder / digest)
    with pytest.raises(InvalidRequest, match="damaged"):
        await kept.fetch(digest)


@pytest.mark.parametrize("failing", ["write", "fsync"])
async def test_a_full_disk_is_unavailable_and_leaves_nothing(
    kept: FileArtifacts, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whether the disk fills while writing or only when the file is synced."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(Unavailable, match="disk is full"):
        await kept.put(chunks(bytes(3 << 20)), MANY)
    monkeypatch.undo()
    assert await files_of(kept) == set()
    await kept.put(chunks(b"one"), MANY)


async def test_a_folder_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    """A file in the folder's place is an error without a path."""
    (tmp_path / "file").touch()
    kept = FileArtifacts(tmp_path / "file" / "artifacts")
    with pytest.raises(Unavailable, match="cannot be used") as caught:
        await kept.put(chunks(b"one"), MANY)
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(Unavailable):
        await kept.fetch("a" * 64)


WRITER = """
import asyncio, sys
from pathlib import Path
from repository.artifacts import FileArtifacts

async def chunks():
    yield bytes(3 << 20)
    print("writing", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    yield b"end"

print(asyncio.run(FileArtifacts(Path(sys.argv[1])).put(chunks(), 1 << 30))[0])
"""


@pytest.mark.parametrize("living", [True, False])
async def test_a_sweep_tells_a_living_writer_of_another_process_from_a_dead_one(
    kept: FileArtifacts, folder: Path, living: bool
) -> None:
    """The file of a writer killed by SIGKILL goes; that of one still writing stays, and becomes an artifact."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "writing\n"
        if not living:
            writer.kill()
            writer.wait()
        assert await kept.sweep() == (0 if living else 1)
        assert await kept.digests() == []
        if living:
            writer.stdin.write("\n")
            writer.stdin.close()
            assert writer.wait(20) == 0
            assert writer.stdout.read().strip() == sha(bytes(3 << 20) + b"end")
    assert await files_of(kept) == ({sha(bytes(3 << 20) + b"end")} if living else set())


async def test_a_sweep_during_many_puts_breaks_none(kept: FileArtifacts) -> None:
    """Also between the creation of a file and its lock."""
    contents = [os.urandom(2 << 20) for _ in range(8)]
    done = False

    async def sweeping() -> None:
        while not done:
            await kept.sweep()

    sweeper = asyncio.create_task(sweeping())
    await asyncio.gather(*(kept.put(chunks(content), MANY) for content in contents))
    done = True
    await sweeper
    assert await kept.digests() == sorted(map(sha, contents))


async def test_a_file_swept_before_it_was_locked_is_made_anew(
    kept: FileArtifacts, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment at which a living writer holds no lock yet."""
    lock, swept = fcntl.flock, 0

    def late(file: int, operation: int) -> None:
        nonlocal swept
        if operation == fcntl.LOCK_EX and not swept:
            swept = files._sweep(folder)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    digest, _ = await kept.put(chunks(b"one"), MANY)
    assert swept == 1
    assert (await kept.fetch(digest)).read_bytes() == b"one"


async def test_a_deletion_that_crashed_is_undone_by_the_sweep(
    kept: FileArtifacts, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the artifact is still named is then decided anew; one under way is left alone."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    (folder / digest).rename(folder / f".leaving-{digest}")
    assert await kept.sweep() == 0
    monkeypatch.setattr(files, "LEAVING_S", 0.0)
    assert await kept.sweep() == 1
    assert (await kept.fetch(digest)).read_bytes() == b"one"


async def test_hashing_does_not_block_the_loop(kept: FileArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact is verified in a thread: here for as long as the loop, which must run for that, lets it."""
    digest, _ = await kept.put(chunks(b"one"), MANY)
    begun, go_on = threading.Event(), threading.Event()

    def waiting(path: Path) -> str:
        begun.set()
        assert go_on.wait(WITHIN_S), "the loop did not run"
        return digest

    monkeypatch.setattr(files, "_digest_of", waiting)
    fetch = asyncio.create_task(kept.fetch(digest))
    await eventually(begun.is_set)
    assert not fetch.done()
    go_on.set()
    assert (await fetch).read_bytes() == b"one"
