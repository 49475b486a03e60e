"""The production shape on one machine, as `make up-distributed` starts it, and what of it a test may disturb."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import psutil
from penstock.client import Client

from tests.graphs import numbered
from tests.running import RunningServer
from tests.services import Broker, Own
from tests.toxics import Link

WITHIN_S = 90.0


class Production:
    """`way`: what everything of it has to the broker."""

    def __init__(self, server: RunningServer, broker: Broker, way: Link) -> None:
        self.server = server
        self.broker = broker
        self.way = way

    def own(self, name: str) -> Own:
        """One of the servers that it has started for itself: `mongo`, `ray`."""
        return Own(self.server.home, name)

    def processes(self, word: str) -> list[psutil.Process]:
        """Those of ours with this word on their command line: `control`, `workers`, `server.gateway_process`."""
        children = psutil.Process(self.server.pid).children()
        return [child for child in children if child.is_running() and word in _command(child)]


class Lent:
    """Started for the first who borrows it, there for everybody after, until it is closed; then it can be had anew."""

    def __init__(self, start: Callable[[], AbstractContextManager[Production]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._there: Production | None = None

    def borrow(self) -> Production:
        if self._there is None:
            self._there = self._stack.enter_context(self._start())
        return self._there

    def close(self) -> None:
        self._there = None
        self._stack.close()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def push_numbered(ps: Client, folder: Path, name: str, number: int) -> int:
    """An ONNX model that answers x + number, and the number; the version's number."""
    artifact = folder / f"{number}.onnx"
    artifact.write_bytes(numbered(number))
    return int(ps.push(artifact, name, max_batch=16)["version"])


def waited(condition: Callable[[], object], within: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.3)


def status(ps: Client) -> dict[str, Any]:
    return dict(ps.status())


def ready(ps: Client, model: str) -> list[dict[str, Any]]:
    """The replicas of a model that serve."""
    return ready_in(status(ps), model)


def ready_in(told: dict[str, Any], model: str) -> list[dict[str, Any]]:
    models = {each["name"]: each for each in told["models"]}
    versions = models[model]["versions"] if model in models else []
    return [replica for version in versions for replica in version["where"] if replica["state"] == "READY"]


def gateways_in(told: dict[str, Any]) -> set[int]:
    """The processes of those that are ready."""
    return {int(gateway["pid"]) for gateway in told["gateways"] if gateway["ready"]}
