"""PENSTOCK_HOME: the folder of an embedded server. One server at a time; clients find their way by `client.toml`."""

from __future__ import annotations

import fcntl
import os
import tomllib
from pathlib import Path

from core.errors import Conflict, Unavailable

CLIENT_TOML = "client.toml"


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

    def api_key(self) -> str | None:
        """The key that the last server wrote for this folder's clients."""
        try:
            key = tomllib.loads((self.folder / CLIENT_TOML).read_text()).get("api_key")
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            return None
        return key if isinstance(key, str) else None

    def write_client(
        self, *, url: str, grpc: str, control: str, api_key: str, jaeger: str = "", prometheus: str = ""
    ) -> None:
        """`client.toml`, mode 0600, replaced whole; without a line for what is empty."""
        lines = {"url": url, "grpc": grpc, "control": control, "api_key": api_key}
        lines |= {"jaeger": jaeger, "prometheus": prometheus}
        text = "".join(f'{name} = "{value}"\n' for name, value in lines.items() if value)
        partial = self.folder / f"{CLIENT_TOML}.partial"
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        partial.rename(self.folder / CLIENT_TOML)


def made(folder: Path) -> None:
    """Make a server's folder where it is missing, mode 0700. Raises Unavailable where it cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(f"the folder {folder} cannot be used: {error.strerror}")
