"""PENSTOCK_HOME: the folder of an embedded server. One server at a time; clients find their way by `client.toml`."""

from __future__ import annotations

import fcntl
import os
import stat
import tomllib
from pathlib import Path

from core.errors import Conflict, Unavailable

CLIENT_TOML = "client.toml"
FORMER_KEYS = "former_keys"
KEPT_KEYS = 8
PRIVATE = 0o600


class Home:
    """The folder, made with mode 0700 and locked for the life of this object.

    Raises Conflict where another server holds it, Unavailable where it cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        made(folder)
        try:
            self._lock = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Conflict(f"another server is running on the folder {folder}") from None

    def release(self) -> None:
        os.close(self._lock)

    @property
    def database(self) -> Path:
        return self.folder / "repository.sqlite"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def api_keys(self) -> list[str]:
        """The keys that servers wrote for this folder's clients, the last one first: each shape of the server has a
        repository of its own, and finds the key that it made there again."""
        try:
            former = (self.folder / FORMER_KEYS).read_text().split()
        except (OSError, UnicodeDecodeError):
            former = []
        return list(dict.fromkeys([*self._current(), *former]))

    def _current(self) -> list[str]:
        try:
            key = tomllib.loads((self.folder / CLIENT_TOML).read_text()).get("api_key")
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            return []
        return [key] if isinstance(key, str) else []

    def write_client(
        self, *, url: str, grpc: str, control: str, api_key: str, jaeger: str = "", prometheus: str = ""
    ) -> None:
        """`client.toml`, mode 0600, replaced whole where it says something else; without a line for what is empty.

        Raises Unavailable where the folder takes nothing; what stood there stands.
        """
        lines = {"url": url, "grpc": grpc, "control": control, "api_key": api_key}
        lines |= {"jaeger": jaeger, "prometheus": prometheus}
        former = [key for key in self.api_keys() if key != api_key]
        try:
            if former:
                self._write(FORMER_KEYS, "".join(f"{key}\n" for key in former[:KEPT_KEYS]))
            self._write(CLIENT_TOML, "".join(f'{name} = "{value}"\n' for name, value in lines.items() if value))
        except OSError as error:
            raise _unusable(self.folder, error) from None

    def _write(self, name: str, text: str) -> None:
        if self._says(name, text):
            return
        partial = self.folder / f"{name}.partial"
        partial.unlink(missing_ok=True)
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "w") as file:
                file.write(text)
            partial.rename(self.folder / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _says(self, name: str, text: str) -> bool:
        """Whether the file is what it is to be: a full disk has room for no other, and needs none."""
        try:
            with (self.folder / name).open() as file:
                return stat.S_IMODE(os.fstat(file.fileno()).st_mode) == PRIVATE and file.read() == text
        except (OSError, UnicodeDecodeError):
            return False


def made(folder: Path) -> None:
    """Make a server's folder where it is missing, mode 0700. Raises Unavailable where it cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(f"the folder {folder} cannot be used: {error.strerror}")
