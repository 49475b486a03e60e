"""What one server keeps on disk: `.penstock/services/<name>/` with its data, its log and how it runs.

`kept.json` survives a stop (ports and secrets, so that URLs stay the same), `running.json` says what runs now.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from core.errors import Unavailable
from server.servers.processes import Birth

PORTS = range(20_000, 32_000)
"""Below what Linux gives to outgoing connections (32768 on), so that none takes a port between choice and use."""

Stored = TypeVar("Stored")


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """How a server was started. One of `birth` (a process) and `container` (its name) is there."""

    url: str
    version: str
    birth: Birth | None = None
    container: str = ""
    exports: dict[str, str] = {}
    """Variables that a client needs beside the URL."""


class Place:
    """The folder of the server `name`; it need not exist to be looked at."""

    def __init__(self, services: Path, name: str) -> None:
        self.folder = services.absolute() / name
        self._kept = _read(self.folder / "kept.json", dict[str, str]) or {}

    def __repr__(self) -> str:
        return f"<Place {self.folder}>"

    @property
    def mark(self) -> str:
        """What the processes of this place carry (`processes.MARK`)."""
        return str(self.folder)

    @property
    def home(self) -> Path:
        """PENSTOCK_HOME, which `services/` is in."""
        return self.folder.parent.parent

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def make(self) -> None:
        make_private(self.folder)

    def inner(self, name: str) -> Path:
        """A folder inside, for nobody else."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def secret(self, name: str) -> str:
        """64 hexadecimal digits, the same at each start."""
        if name not in self._kept:
            self._keep(name, secrets.token_hex(32))
        return self._kept[name]

    def port(self, name: str) -> int:
        """A free port of loopback, no other's of this place; the same as last time where that is still free."""
        others = {value for key, value in self._kept.items() if key != name}
        port = int(self._kept.get(name, 0))
        while not (port and str(port) not in others and _free(port)):
            port = secrets.choice(PORTS)
        if self._kept.get(name) != str(port):
            self._keep(name, str(port))
        return port

    def remembered(self, name: str) -> str:
        """A port or a secret as it was given out; '' where it never was."""
        return self._kept.get(name, "")

    def write(self, name: str, content: str, mode: int = 0o600) -> Path:
        """A file inside, replaced whole."""
        return _write(self.folder / name, content.encode(), mode)

    @property
    def running(self) -> Running | None:
        """What `start` left here, whether or not it still runs."""
        return _read(self.folder / "running.json", Running)

    def started(self, running: Running) -> None:
        _write(self.folder / "running.json", msgspec.json.encode(running), 0o600)

    def stopped(self) -> None:
        (self.folder / "running.json").unlink(missing_ok=True)

    def last_words(self, lines: int = 5) -> str:
        """The end of the log."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def _keep(self, name: str, value: str) -> None:
        self._kept[name] = value
        _write(self.folder / "kept.json", msgspec.json.encode(self._kept), 0o600)


def make_private(folder: Path) -> None:
    """The folder and those above it that are missing, for nobody else. Raises Unavailable where that cannot be done."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the folder {folder} cannot be used: {error.strerror}") from None


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock between processes, waiting for whoever holds it. It goes with the process that holds it."""
    make_private(file.parent)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _read(file: Path, form: type[Stored]) -> Stored | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=form)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(file: Path, content: bytes, mode: int) -> Path:
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        os.fchmod(stream.fileno(), mode)  # whatever the umask
        stream.write(content)
    partial.rename(file)
    return file
