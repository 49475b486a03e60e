"""Artifacts of a distant repository on this host: one folder, shared by every process that runs models here.

One process downloads, the others wait for its lock and find the file. A file is pinned, by a shared lock, by each
process that asked for it: what a living process may still open is not evicted. Beyond the bound the files that were
asked for longest ago go first.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from core.errors import InvalidRequest, NotFound
from repository.artifacts import DIGEST, FileArtifacts

Source = Callable[[], AsyncIterator[bytes]]

LOCK = ".lock-"
TURN_S = 0.02
"""Seconds between two tries for another process's lock."""
PINS = 64
"""Files that one process keeps from eviction: those it asked for last."""


class _File(NamedTuple):
    used: int
    size: int
    path: Path


class Cache:
    """`bound`: bytes that the folder may hold; what living processes have pinned may exceed it."""

    def __init__(self, folder: Path, bound: int) -> None:
        self._folder = folder
        self._bound = bound
        self._files = FileArtifacts(folder)
        self._pins: dict[str, int] = {}

    async def find(self, digest: str) -> Path | None:
        """The file, its digest just verified; None where it is not here, or damaged."""
        try:
            path = await self._files.fetch(digest)
        except (NotFound, InvalidRequest):
            return None
        return path if self._pin(path) else None

    async def fetch(self, digest: str, size: int, source: Source) -> Path:
        """The file, read from `source` where it is not here yet; `size` in bytes, to make room for.

        Raises InvalidRequest when the content that `source` gives has another digest, and what `source` raises.
        """
        async with self._alone(digest):
            path = await self.find(digest)
            if path is None:
                path = await self._download(digest, size, source)
        return path

    def close(self) -> None:
        """Let go of the pins."""
        self._unpin(0)

    async def _download(self, digest: str, size: int, source: Source) -> Path:
        await self._files.sweep()
        await asyncio.to_thread(self._make_room, size)
        found, _ = await self._files.put(source(), sys.maxsize)
        path = await self.find(digest) if found == digest else None
        if path is None:
            raise InvalidRequest(f"the artifact {digest[:12]}… is damaged: its content does not match its digest")
        return path

    @asynccontextmanager
    async def _alone(self, digest: str) -> AsyncIterator[None]:
        """Hold the host's lock for this artifact. It is gone with its process, and its file with the last use."""
        if not DIGEST.match(digest):
            raise InvalidRequest("an artifact's digest is 64 hexadecimal digits")
        path = self._folder / f"{LOCK}{digest}"
        while (lock := _lock(path)) is None:  # noqa: ASYNC110 - another process holds it
            await asyncio.sleep(TURN_S)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(lock)

    def _pin(self, path: Path) -> bool:
        """Keep the file from eviction and note the use; False where it was evicted just before."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        fcntl.flock(file, fcntl.LOCK_SH)
        if not os.fstat(file).st_nlink:
            os.close(file)
            return False
        os.utime(file)
        earlier = self._pins.pop(path.name, None)
        self._pins[path.name] = file
        if earlier is not None:
            os.close(earlier)
        self._unpin(PINS)
        return True

    def _unpin(self, keep: int) -> None:
        while len(self._pins) > keep:
            os.close(self._pins.pop(next(iter(self._pins))))

    def _make_room(self, size: int) -> None:
        files = sorted(_listed(self._folder))
        held = sum(file.size for file in files)
        for file in files:
            if held + size <= self._bound:
                return
            if _evict(file.path):
                held -= file.size


def _lock(path: Path) -> int | None:
    """A locked file, or None where somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:
            return file
    os.close(file)
    return None


def _listed(folder: Path) -> list[_File]:
    found = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if DIGEST.match(entry.name):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    found.append(_File(status.st_mtime_ns, status.st_size, Path(entry.path)))
    return found


def _evict(path: Path) -> bool:
    """Remove a file that nobody has pinned."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)
