"""The programs that are measured, each in a process of its own, and what they cost."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.running import COMMAND, RunningServer, running

ROOT = Path(__file__).parent.parent
STARTS_WITHIN_S = 30


class Echo(NamedTuple):
    port: int
    pid: int


@contextlib.contextmanager
def echo(module: str, *arguments: str) -> Iterator[Echo]:
    """One of our bare servers (`benchmarks.echo`, `grpc_echo`, `copies`) on a free port."""
    port = _free_port()
    command = [sys.executable, "-m", module, str(port), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield Echo(port, process.pid)
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def penstock(*words: str, **settings: str) -> Iterator[RunningServer]:
    """`penstock up WORDS`: an embedded server, or the production shape; without the sample models unless they are
    asked for."""
    settings = {"samples": "false", "log_level": "warning"} | settings
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        running(Path(folder) / "home", *words, **settings) as server,
    ):
        yield server


def push(server: RunningServer, artifact: str, name: str, *options: str) -> str:
    """`penstock push`, until the version is ready; the model's infer path. Raises RuntimeError with what it said."""
    done = subprocess.run(
        [COMMAND, "push", artifact, "--name", name, *options], env=server.environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"push of {name}: {done.stdout}{done.stderr}")
    return f"{server.url}/v2/models/{name}/infer"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    times = [process.cpu_times() for process in family(pid)]
    return sum(time.user + time.system for time in times)


def rss_bytes(pid: int) -> list[int]:
    """Resident memory of a process, then of each of its children."""
    return [process.memory_info().rss for process in family(pid)]


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")
