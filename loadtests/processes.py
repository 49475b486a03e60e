"""What is measured, each in processes of its own: a Penstock server, the echoes; and the CPU time they take."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import penstock
import psutil

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "penstock"
ECHO, GRPC_ECHO = "benchmarks.echo", "benchmarks.grpc_echo"
READY_WITHIN_S = 240
STARTS_WITHIN_S = 30
STOPPED_WITHIN_S = 60


class Server(NamedTuple):
    """`keys`: one of each tenant; `admin`: one that may do everything."""

    url: str
    grpc: str
    control: str
    admin: str
    home: Path
    pid: int
    keys: tuple[str, ...] = ()


class Echo(NamedTuple):
    port: int
    pid: int


@contextlib.contextmanager
def server(home: Path, command: Sequence[str | Path] = (COMMAND, "up"), **settings: str) -> Iterator[Server]:
    """A server of its own on free ports, from when it is ready; asked to stop at the end. Raises RuntimeError."""
    ours = {"home": str(home), "http_port": "0", "grpc_port": "0", "control_port": "0", "log_level": "warning"}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "RAY_", "OTEL_"))
    }
    environment |= {f"PENSTOCK_{name.upper()}": value for name, value in (ours | settings).items()}
    home.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"{home.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=ROOT
        )
    try:
        yield _ready(process, home, log)
    finally:
        stop(process)


def _ready(process: subprocess.Popen[bytes], home: Path, log: Path) -> Server:
    told = home / "client.toml"
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if told.exists():
            found = tomllib.loads(told.read_text())
            with penstock.connect(found["url"], api_key=found["api_key"], control=found["control"]) as ps:
                if ps.ready():
                    return Server(found["url"], found["grpc"], found["control"], found["api_key"], home, process.pid)
        time.sleep(0.2)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    how = f"ended with {process.returncode}" if process.returncode is not None else "did not become ready"
    raise RuntimeError(f"the server {how}; its last words:\n{last}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, with all that it has started, and kill it if it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def stop_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does, so that it stops what it has started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def with_tenants(running: Server, names: Sequence[str]) -> Server:
    """The same server with a key for each of these tenants."""
    with penstock.connect(running.url, api_key=running.admin, control=running.control) as ps:
        keys = [str(ps.keys.create(f"load {name}", owner=name)["key"]) for name in names]
    return running._replace(keys=tuple(keys))


@contextlib.contextmanager
def echo(module: str, *arguments: str) -> Iterator[Echo]:
    """A bare server of `benchmarks` (`echo`, `grpc_echo`, …) on a free port."""
    port = free_port()
    command = [sys.executable, "-m", module, str(port), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield Echo(port, process.pid)
    finally:
        process.terminate()
        process.wait(10)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    return clock(pid)()


def clock(pid: int) -> Callable[[], float]:
    """The same of the processes that there are now, in microseconds instead of a walk through all of the machine's. One
    that has ended counts what it had used when it was last looked at."""
    used = dict.fromkeys(family(pid), 0.0)

    def now() -> float:
        for process in used:
            with contextlib.suppress(psutil.NoSuchProcess):
                used[process] = _cpu_seconds(process)
        return sum(used.values())

    return now


def _cpu_seconds(process: psutil.Process) -> float:
    """On Linux exact to the nanosecond, where /proc counts in hundredths of a second: every process has a clock whose
    id is made of its own (`clock_getcpuclockid`)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return time.clock_gettime(~process.pid << 3 | 2)
    times = process.cpu_times()
    return float(times.user + times.system)


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def free_port() -> int:
    """One that nothing listens on, below those that the kernel gives to outgoing connections, which might take it."""
    while True:
        port = random.randrange(10_240, 20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")
