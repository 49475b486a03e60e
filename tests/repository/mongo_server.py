"""A server of MongoDB's protocol that a test may stop, pause and start again."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

from server.servers.ferretdb import PROGRAM


class MongoServer:
    """FerretDB on a port of loopback that stays the same over restarts, as does its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._listen = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"mongodb://{self._listen}/"

    def start(self) -> None:
        PROGRAM.build(print)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("a") as log:
            command = [str(PROGRAM.path), "--listen", self._listen, "--dir", str(self._folder / "data")]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == self.url, (self._folder / "log").read_text()

    def pause(self) -> None:
        """As a machine that is there but does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            with self._process as process:
                process.kill()
        self._process = None
