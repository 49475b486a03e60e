"""The cache of artifacts on a host: one download for all, verified, bounded, and nothing taken from under a user."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from core.errors import InvalidRequest, Unavailable
from repository.cache import Cache, Source

ROOMY = 1 << 30


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Distant:
    """A repository that counts its downloads; `slow`: they wait until it is set."""

    def __init__(self) -> None:
        self.downloads = 0
        self.slow = asyncio.Event()
        self.slow.set()

    def source(self, content: bytes) -> Source:
        async def chunks() -> AsyncIterator[bytes]:
            self.downloads += 1
            await self.slow.wait()
            yield content

        return chunks


@pytest.fixture
def distant() -> Distant:
    return Distant()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def caches(folder: Path) -> Iterator[list[Cache]]:
    """Of four processes of one host."""
    made = [Cache(folder, ROOMY) for _ in range(4)]
    yield made
    for cache in made:
        cache.close()


async def fetch(cache: Cache, distant: Distant, content: bytes) -> Path:
    return await cache.fetch(sha(content), len(content), distant.source(content))


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_all_processes_share_one_download(caches: list[Cache], distant: Distant, folder: Path) -> None:
    """Those that come while it is under way wait for it; nothing but the artifact stays."""
    distant.slow.clear()
    fetches = [asyncio.create_task(fetch(cache, distant, b"one")) for cache in caches for _ in range(3)]
    await asyncio.sleep(0.1)  # long enough for all to come
    distant.slow.set()
    paths = set(await asyncio.gather(*fetches))
    assert distant.downloads == 1
    assert [path.read_bytes() for path in paths] == [b"one"]
    assert kept(folder) == {sha(b"one")}


async def test_a_file_is_read_only(caches: list[Cache], distant: Distant) -> None:
    """And its owner's alone."""
    assert (await fetch(caches[0], distant, b"one")).stat().st_mode & 0o777 == 0o400


async def test_different_artifacts_do_not_wait_for_each_other(caches: list[Cache], distant: Distant) -> None:
    """A slow download holds up those who want the same only."""
    distant.slow.clear()
    slow = asyncio.create_task(fetch(caches[0], distant, b"slow"))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(fetch(caches[1], Distant(), b"other"), 10)
    slow.cancel()
    await asyncio.wait([slow])


async def test_content_of_another_digest_is_refused(caches: list[Cache], distant: Distant) -> None:
    """And is never found under the digest that was asked for."""
    with pytest.raises(InvalidRequest, match="damaged"):
        await caches[0].fetch(sha(b"one"), 3, distant.source(b"two"))
    assert await caches[0].find(sha(b"one")) is None
    assert await fetch(caches[0], distant, b"one")


async def test_a_damaged_file_is_downloaded_anew(caches: list[Cache], distant: Distant) -> None:
    """The digest is taken at each fetch."""
    path = await fetch(caches[0], distant, b"one")
    path.chmod(0o600)
    path.write_bytes(b"two")
    assert (await fetch(caches[1], distant, b"one")).read_bytes() == b"one"
    assert distant.downloads == 2


async def test_a_download_that_fails_or_is_cancelled_leaves_the_turn_to_the_next(
    caches: list[Cache], distant: Distant, folder: Path
) -> None:
    """And nothing of itself."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"o"
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        await caches[0].fetch(sha(b"one"), 3, broken)
    distant.slow.clear()
    cancelled = asyncio.create_task(fetch(caches[0], distant, b"one"))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert kept(folder) == set()
    distant.slow.set()
    assert await fetch(caches[1], distant, b"one")


HOLDER = """
import asyncio, sys
from pathlib import Path
from repository.cache import Cache

async def never():
    yield b"half"
    print("downloading", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(Cache(Path(sys.argv[1]), 1 << 30).fetch(sys.argv[2], 8, never))
"""


async def test_a_process_killed_in_its_download_leaves_the_turn_to_the_next(
    caches: list[Cache], distant: Distant, folder: Path
) -> None:
    """What it left behind is swept away."""
    command = [sys.executable, "-c", HOLDER, str(folder), sha(b"one")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "downloading\n"
        waiting = asyncio.create_task(fetch(caches[0], distant, b"one"))
        await asyncio.sleep(0.1)
        assert distant.downloads == 0
        holder.kill()
    assert (await asyncio.wait_for(waiting, 10)).read_bytes() == b"one"
    assert kept(folder) == {sha(b"one")}


async def test_beyond_the_bound_the_least_recently_used_go(folder: Path, distant: Distant) -> None:
    """Room is made before a download; a use counts, not only the download."""
    contents = [bytes([number]) * 100 for number in range(4)]
    for number, content in enumerate(contents[:3]):
        user = Cache(folder, 300)
        await fetch(user, distant, content)
        user.close()
        os.utime(folder / sha(content), (number, number))
    again = Cache(folder, 300)
    await fetch(again, distant, contents[0])
    again.close()
    last = Cache(folder, 300)
    await fetch(last, distant, contents[3])
    assert kept(folder) == {sha(contents[number]) for number in (0, 2, 3)}
    last.close()


async def test_what_a_living_process_asked_for_is_not_evicted(folder: Path, distant: Distant) -> None:
    """Not even beyond the bound; once its process is gone it may go."""
    user, other = Cache(folder, 150), Cache(folder, 150)
    used = await fetch(user, distant, b"a" * 100)
    await fetch(other, distant, b"b" * 100)
    assert used.read_bytes() == b"a" * 100
    other.close()
    user.close()
    await fetch(other, distant, b"c" * 100)
    assert kept(folder) == {sha(b"c" * 100)}
    other.close()


async def test_a_process_pins_the_last_it_asked_for_only(
    folder: Path, distant: Distant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lives for months does not hold every file that it has ever loaded."""
    monkeypatch.setattr("repository.cache.PINS", 2)
    user = Cache(folder, 250)
    for content in (b"a", b"b", b"c", b"c", b"d"):
        await fetch(user, distant, content * 100)
    assert kept(folder) == {sha(content * 100) for content in (b"b", b"c", b"d")}
    user.close()


@pytest.mark.parametrize("digest", ["", "..", "../../etc/passwd", "A" * 64, "a" * 64 + "\n"])
async def test_nothing_but_a_digest_becomes_a_path(caches: list[Cache], distant: Distant, digest: str) -> None:
    """Neither of a file nor of a lock."""
    with pytest.raises(InvalidRequest, match="64 hexadecimal"):
        await caches[0].fetch(digest, 1, distant.source(b"x"))
    assert await caches[0].find(digest) is None
