"""Artifacts as files named by the SHA-256 of their content.

Nothing is readable under a digest before it is whole: a writer fills `.incoming-…` in the same folder, syncs it and
renames it. It holds a lock on that file all the while, so that a sweep tells what a crashed writer left behind from
what a living one, of any process, is still writing.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from core.errors import InvalidRequest, NotFound, PenstockError, TooLarge, Unavailable
from repository.store import Used

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
INCOMING, LEAVING = ".incoming-", ".leaving-"
PIECE = 1 << 20
"""Bytes that are gathered before they are hashed and written in one step, in a thread."""

LEAVING_S = 60.0
"""Seconds after which a deletion that has not ended is taken for one that crashed."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class FileArtifacts:
    """`Artifacts` in one folder, made on first use, readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, chunks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        """Store a stream; returns (digest, bytes). Raises TooLarge beyond `limit`, Unavailable when the disk is full.

        Whatever `chunks` raises is passed on; nothing is left behind then.
        """
        incoming = _Incoming(self._folder)
        try:
            gathered = bytearray()
            async for chunk in chunks:
                gathered += chunk
                if incoming.size + len(gathered) > limit:
                    raise TooLarge(f"the artifact exceeds {limit} bytes")
                if len(gathered) >= PIECE:
                    await _in_thread(partial(incoming.write, gathered))
                    gathered = bytearray()
            return await _in_thread(partial(incoming.commit, gathered))
        finally:
            await asyncio.shield(asyncio.to_thread(incoming.discard))

    async def fetch(self, digest: str) -> Path:
        path = self._path(digest)
        found = await _in_thread(lambda: _digest_of(path))
        if found != digest:
            log.error("artifact_damaged", digest=digest, found=found)
            raise InvalidRequest(f"the artifact {digest[:12]}… is damaged: its content does not match its digest")
        return path

    async def delete(self, digest: str, used: Used | None = None) -> None:
        """Forget the artifact; missing is fine. `used` is asked once it is out of sight: True puts it back.

        So a push of the same content that comes between the caller's look and the deletion loses nothing: it either
        is seen by `used`, or finds its artifact gone when it looks.
        """
        path = self._path(digest)
        aside = self._folder / f"{LEAVING}{digest}"
        moved = await _in_thread(lambda: _move(path, aside))
        if not moved:
            return
        back = True
        try:
            back = used is not None and await used()
        finally:
            await asyncio.shield(_in_thread(lambda: _restore(aside, path) if back else _remove(aside)))

    async def digests(self) -> list[str]:
        return await _in_thread(lambda: sorted(name for name in _names(self._folder) if DIGEST.match(name)))

    async def sweep(self) -> int:
        """Remove what crashed writers left behind; returns how many files. Living writers are not touched."""
        return await _in_thread(lambda: _sweep(self._folder))

    def _path(self, digest: str) -> Path:
        if not DIGEST.match(digest):
            raise InvalidRequest("an artifact's digest is 64 hexadecimal digits")
        return self._folder / digest


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread; what the file system refuses becomes Unavailable, with the details in the log."""
    try:
        return await asyncio.to_thread(work)
    except PenstockError:
        raise
    except OSError as error:
        log.error("artifacts_failed", error=repr(error))
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Unavailable(
            "the repository's disk is full" if full else "the repository's artifacts cannot be used"
        ) from error


class _Incoming:
    """One artifact on its way in. Its methods run in threads, one after the other: a lock sees to that."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._folder = folder
        self._hash = hashlib.sha256()
        self._turn = threading.Lock()
        self._path: Path | None = None
        self._file: int | None = None
        self._over = False

    def write(self, piece: bytes | bytearray) -> None:
        with self._turn:
            self._append(piece)

    def commit(self, last: bytes | bytearray) -> tuple[str, int]:
        """Write the last piece and let the artifact appear under its digest."""
        with self._turn:
            file = self._append(last)
            os.fchmod(file, 0o400)
            os.fsync(file)
            digest = self._hash.hexdigest()
            assert self._path is not None
            self._path.replace(self._folder / digest)
            self._path = None
            _sync(self._folder)
            return digest, self.size

    def discard(self) -> None:
        """Close, and remove what was not committed."""
        with self._turn:
            self._over = True
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            if self._file is not None:
                os.close(self._file)
            self._path = self._file = None

    def _append(self, piece: bytes | bytearray) -> int:
        if self._over:
            raise OSError(errno.ECANCELED, "the upload was given up")
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path, self._file = _create(self._folder)
        self._hash.update(piece)
        self.size += len(piece)
        with memoryview(piece) as rest:
            at = 0
            while at < len(rest):
                at += os.write(self._file, rest[at:])
        return self._file


def _create(folder: Path) -> tuple[Path, int]:
    """A new, locked file. Anew where a sweep took it between its creation and its lock."""
    while True:
        path = folder / f"{INCOMING}{secrets.token_hex(8)}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return path, file
        os.close(file)


def _open(path: Path) -> int:
    """A regular file, not through a symbolic link."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.ELOOP, "not a regular file")
    return file


def _digest_of(path: Path) -> str:
    """SHA-256 of a file's content; '' for what is no regular file."""
    try:
        file = _open(path)
    except FileNotFoundError:
        raise NotFound(f"the artifact {path.name[:12]}… is missing from the repository") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return ""
        raise
    with os.fdopen(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _move(path: Path, aside: Path) -> bool:
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    return True


def _restore(aside: Path, path: Path) -> None:
    with suppress(FileNotFoundError):
        aside.rename(path)


def _remove(aside: Path) -> None:
    aside.unlink(missing_ok=True)
    _sync(aside.parent)


def _sweep(folder: Path) -> int:
    swept = 0
    for name in _names(folder):
        if name.startswith(INCOMING):
            swept += _abandoned(folder / name)
        elif name.startswith(LEAVING):
            swept += _forgotten(folder / name, time.time())
    return swept


def _abandoned(path: Path) -> bool:
    """Remove an incoming file that nobody holds the lock of."""
    try:
        file = _open(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def _forgotten(aside: Path, now: float) -> bool:
    """Put back what a deletion that crashed had moved aside: whether it is still used is decided anew."""
    try:
        if now - aside.lstat().st_ctime < LEAVING_S:
            return False
    except FileNotFoundError:
        return False
    _restore(aside, aside.with_name(aside.name.removeprefix(LEAVING)))
    return True
