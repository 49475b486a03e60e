"""The private folder of a child process, and what becomes of those whose server died before it could remove them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "penstock-child-"
"""Of these folders and no others: Ray's sessions may stand beside them (`server/servers/ray_head.py`)."""
YOUNG_S = 60.0
"""A folder younger than this may not be locked yet."""


class Folder:
    """A new folder that only `uid` may enter (0: whoever we are), locked as long as it is in use."""

    def __init__(self, uid: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._uid = uid
        self._lock: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def copy(self, source: Path, name: str) -> Path:
        """A file's copy in it, for its owner to read."""
        shutil.copyfile(source, self.path / name)
        return self._owned(self.path / name)

    def write(self, name: str, data: bytes) -> Path:
        (self.path / name).write_bytes(data)
        return self._owned(self.path / name)

    def hand_over(self) -> None:
        """Give it to its uid."""
        if self._uid:
            os.chown(self.path, self._uid, self._uid)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _owned(self, path: Path) -> Path:
        path.chmod(0o400)
        if self._uid:
            os.chown(path, self._uid, self._uid)
        return path


def sweep() -> None:
    """Remove folders that nobody holds any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > YOUNG_S:
                _remove_unheld(path)
        except OSError:
            continue


def _remove_unheld(path: Path) -> None:
    """Raises OSError where it is held, or not ours to remove."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
