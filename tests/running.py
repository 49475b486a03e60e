"""A real server in processes of its own, as `make up` starts it, on free ports and a home of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from loadtests.processes import stop

COMMAND = Path(sys.executable).parent / "penstock"
READY_WITHIN_S = 240
STOPPED_WITHIN_S = 60
ALL_STOPPED_WITHIN_S = 180
"""With every server of the production shape, one after the other."""


EMBEDDED, DISTRIBUTED = "embedded", "distributed"
BOTH_SHAPES = pytest.mark.parametrize(
    "running_server",
    [EMBEDDED, DISTRIBUTED],
    indirect=True,
    scope="session",
)
"""The mark of a module whose promises hold in one process and in the production shape."""


class RunningServer(NamedTuple):
    """`url`: of HTTP, `grpc`: host:port, `control`: of the control API, which is `url` where all is one process. `log`
    is the file that takes what the process writes."""

    url: str
    grpc: str
    control: str
    api_key: str
    home: Path
    log: Path
    pid: int

    @property
    def distributed(self) -> bool:
        return self.control != self.url

    @property
    def environment(self) -> dict[str, str]:
        """That of a client process on this machine, with this server's commands first on its PATH."""
        return clean_environment() | {
            "PENSTOCK_URL": self.url,
            "PENSTOCK_GRPC": self.grpc,
            "PENSTOCK_CONTROL": self.control,
            "PENSTOCK_API_KEY": self.api_key,
            "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }


def clean_environment() -> dict[str, str]:
    """This process's, without any setting of Penstock's, a cluster to join, or a place that spans go to."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PENSTOCK_", "RAY_", "OTEL_"))}


def alive(process: psutil.Process) -> bool:
    """Whether it runs: not ended, whether its parent has asked how or not. It may end while it is looked at."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.is_running()
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def running(home: Path, *words: str, **settings: str) -> Iterator[RunningServer]:
    """Start `penstock up WORDS` with these settings (PENSTOCK_<NAME>; a name in capitals is the variable's), wait until
    it is ready, and at the end stop it by SIGTERM: it must exit with 0."""
    log = home.parent / f"{home.name}.log"
    with started(home, log, "up", *words, control_port="0", **settings) as process:
        yield _wait_until_ready(process, home, log)


@contextlib.contextmanager
def started(home: Path, log: Path, *words: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """`penstock WORDS` with these settings, stopped at the end as `running` says."""
    home.mkdir(parents=True, exist_ok=True)
    ours = {"home": str(home), "http_port": "0", "grpc_port": "0"} | settings
    environment = clean_environment() | {
        name if name.isupper() else f"PENSTOCK_{name.upper()}": value for name, value in ours.items()
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [COMMAND, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=home
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        bound = ALL_STOPPED_WITHIN_S if "--distributed" in words else STOPPED_WITHIN_S
        assert process.wait(bound) == 0, "the server's exit was not clean"
    except BaseException as error:
        error.add_note(f"the server's last words:\n{_tail(log)}")
        raise
    finally:
        if process.poll() is None:
            stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], home: Path, log: Path) -> RunningServer:
    deadline = time.monotonic() + READY_WITHIN_S
    told = home / "client.toml"
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        if told.exists() and answers(tomllib.loads(told.read_text()).get("url", "")):
            client = tomllib.loads(told.read_text())
            return RunningServer(
                client["url"], client["grpc"], client["control"], client["api_key"], home, log, process.pid
            )
        time.sleep(0.1)
    raise AssertionError(f"the server was not ready within {READY_WITHIN_S} s")


def answers(url: str) -> bool:
    """Whether a server says there that it is ready."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])
