"""A peer: a server that the others are measured beside; how a foreign one is started, waited for and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from benchmarks import models
from benchmarks.load import GrpcTarget
from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT, Ask
from benchmarks.peers.environments import environment
from loadtests.processes import free_port
from tests.running import clean_environment

SERVED = Path(__file__).parent / "served"
MAX_BATCH, MAX_IMAGES = 64, 8
"""Rows of a batch at most, the same for all: of products, of images."""
STARTS_WITHIN_S = 240
ENDS_WITHIN_S = 15


class Served(NamedTuple):
    """A peer that runs. `roots`: processes whose trees are all of it. `rest`, `grpc`: what to ask, by model."""

    roots: list[int]
    rest: dict[str, Ask]
    grpc: dict[str, GrpcTarget] = {}


class Peer(NamedTuple):
    """`settings`: how it is set up, for the result. `no_grpc`: why it has no gRPC row, '' where it has.

    `serve` starts it with these models; RuntimeError where it does not start. `starts`: the models of each start:
    where an idle model costs CPU, each has a start of its own.
    """

    name: str
    title: str
    settings: str
    serve: Callable[[tuple[str, ...]], AbstractContextManager[Served]]
    no_grpc: str = ""
    starts: tuple[tuple[str, ...], ...] = ((PRODUCT, CORNER),)


class Site(NamedTuple):
    """Where a foreign server runs: an empty folder, the Python of its environment, free ports."""

    folder: Path
    python: Path
    port: int
    grpc_port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def grpc(self) -> dict[str, GrpcTarget]:
        """For a server that speaks V2 over gRPC."""
        return {model: asks.v2_grpc(f"127.0.0.1:{self.grpc_port}", model) for model in (PRODUCT, CORNER)}


class Program(NamedTuple):
    """A command, what it finds in its environment beside the usual, and the signal that ends it."""

    command: list[str]
    environment: dict[str, str] = {}
    ends_by: signal.Signals = signal.SIGTERM


@contextlib.contextmanager
def foreign(
    packages: str, program: Callable[[Site], Program], told: Callable[[Site], Served], which: tuple[str, ...]
) -> Iterator[Served]:
    """A server in the environment `packages`, until it answers; `told` says what to ask it."""
    python = environment(packages)
    with tempfile.TemporaryDirectory(prefix="penstock-peer-", ignore_cleanup_errors=True) as name:
        site = Site(Path(name), python, free_port(), free_port())
        models.product_weights().tofile(site.folder / "weights")
        command, variables, ends_by = program(site)
        log = site.folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=site.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=_environment(site, which) | variables,
            )  # fmt: skip
        try:
            served = told(site)
            served = served._replace(roots=[process.pid], rest={model: served.rest[model] for model in which})
            _wait_for(process, served, log)
            yield served
        finally:
            end(process, ends_by)


def _environment(site: Site, which: tuple[str, ...]) -> dict[str, str]:
    """What the programs in `served/` read."""
    return clean_environment() | {
        "PATH": f"{site.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "WEIGHTS": str(site.folder / "weights"),
        "MODELS": ",".join(which),
        "MAX_BATCH": str(MAX_BATCH),
        "MAX_IMAGES": str(MAX_IMAGES),
        "PORT": str(site.port),
        "GRPC_PORT": str(site.grpc_port),
    }


def _wait_for(process: subprocess.Popen[bytes], served: Served, log: Path) -> None:
    """Until each model has answered with anything: whether it is right is looked at later."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    for model, ask in served.rest.items():
        while not _answers(ask, model):
            if process.poll() is not None:
                raise RuntimeError(f"it ended with {process.returncode} at its start: {_last_words(log)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"it did not answer within {STARTS_WITHIN_S} s: {_last_words(log)}")
            time.sleep(0.2)


def _answers(ask: Ask, model: str) -> bool:
    try:
        asks.check_http(ask, model)
    except (httpx.HTTPError, asks.Refused):  # 404 and 503 while its models are being loaded
        return False
    except asks.Wrong:
        pass
    return True


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """A program and all that it has started: some leave children behind, which would go on using the cores."""
    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(by)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ENDS_WITHIN_S)
    _, left = psutil.wait_procs(started, timeout=2)
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=2)
    if process.poll() is None:
        process.kill()
        process.wait()
