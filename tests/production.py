"""The production shape on one machine, as `make up-distributed` starts it, and what of it a test may disturb."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from penstock.client import Client
from penstock.errors import NotFound, Unavailable

from server.servers import ray_head
from tests.graphs import numbered
from tests.running import READY_WITHIN_S, RunningServer, answers, started
from tests.services import Broker, Own, Servers
from tests.toxics import Link

T = TypeVar("T")

WITHIN_S = 90.0
CONTROL, GATEWAY = "control", "server.gateway_process"
"""Words on the command lines of its processes."""


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
        return children(self.server.pid, word)


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

    def close_first(self, stack: ExitStack) -> None:
        """What leans on it."""
        self._stack.callback(stack.close)

    def close(self) -> None:
        self._there = None
        self._stack.close()


@contextmanager
def gateways_beside(production: Production, home: Path, **settings: str) -> Iterator[RunningServer]:
    """Two more gateway processes of the same shape, on ports and with settings of their own."""
    log = home.parent / f"{home.name}.log"
    others = {"amqp_url": production.way.url, "mongo_url": production.own("mongo").url}
    with started(home, log, "gateway", "--processes", "2", **others, **settings) as process:
        url, grpc = _told_by(process, log)
        waited(lambda: answers(url))
        yield production.server._replace(url=url, grpc=grpc, home=home, log=log, pid=process.pid)


READY = re.compile(r"^ +REST +(\S+)\n +gRPC +(\S+)$", re.MULTILINE)


def _told_by(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """The two addresses that gateways tell once they serve."""

    def told() -> re.Match[str] | None:
        assert process.poll() is None, f"the gateways ended with {process.returncode}"
        return READY.search(log.read_text())

    url, grpc = waited(told, READY_WITHIN_S).groups()
    return url, grpc


def fronts(server: RunningServer) -> list[psutil.Process]:
    """The processes that take what clients send: gateways and control plane, or the one that is all of it."""
    found = children(server.pid, GATEWAY) + children(server.pid, CONTROL)
    return found if server.distributed else [psutil.Process(server.pid)]


def logged(server: RunningServer) -> str:
    """All that the server's processes have written. A replica writes into a file of Ray's; gateways by themselves have
    no Ray."""
    files = [server.log]
    if (server.home / "services" / "ray").exists():
        sessions = ray_head._scratch(Servers(server.home).place("ray"))
        files += sessions.glob("session_latest/logs/worker-*")
        files += sessions.glob("session_latest/logs/serve/replica_*")
    return "\n".join(file.read_bytes().decode(errors="replace") for file in files)


def children(pid: int, word: str) -> list[psutil.Process]:
    """Those with this word on their command line."""
    found = psutil.Process(pid).children()
    return [child for child in found if child.is_running() and word in _command(child)]


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


def waited(condition: Callable[[], T | None], within: float = WITHIN_S) -> T:
    """What the condition comes to, once it holds."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.3)
    return found


def status(ps: Client) -> dict[str, Any]:
    return dict(ps.status())


def ready(ps: Client, model: str) -> list[dict[str, Any]]:
    """The replicas of a model that serve."""
    return ready_in(status(ps), model)


def ready_in(told: dict[str, Any], model: str) -> list[dict[str, Any]]:
    models = {each["name"]: each for each in told["models"]}
    versions = models[model]["versions"] if model in models else []
    return [replica for version in versions for replica in version["where"] if replica["state"] == "READY"]


def informed(ps: Client, processes: Collection[psutil.Process] = ()) -> bool:
    """Whether every gateway, these among them, knows what the repository says now: models, and keys."""
    told = status(ps)
    behind = [gateway for gateway in told["gateways"] if gateway["revision"] < told["revision"]]
    return not behind and {gateway["pid"] for gateway in told["gateways"]}.issuperset(each.pid for each in processes)


@contextmanager
def left_as_it_was(ps: Client, kept: Collection[str] = ()) -> Iterator[None]:
    """Models that have come meanwhile go: a cluster has room for so many replicas. Some may be `kept` for others."""
    there = {model["name"] for model in ps.models()}
    yield
    for model in ps.models():
        if model["name"] not in there.union(kept):
            with suppress(NotFound):  # it went, and the answer came too late
                patiently(partial(ps.delete, model["name"]))


def patiently(work: Callable[[], T]) -> T:
    """As a client does who is told to come again: a machine that starts twenty replicas answers some things late."""
    for _ in range(10):
        with suppress(Unavailable):
            return work()
        time.sleep(1)
    return work()


async def asked_patiently(ask: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The same of one that is told so over HTTP: the first answer that is not 503, or the last."""
    for _ in range(10):
        answer = await ask()
        if answer.status_code != 503:
            break
        await asyncio.sleep(1)
    return answer


def settled(ps: Client) -> Client:
    """Its changes come again where they are told to, and when they return every gateway knows of them: of one that is
    late on a busy machine the product itself waits three seconds to hear (`server/handshake.py`)."""
    for name in ("push", "load", "alias", "unalias"):
        setattr(ps, name, partial(_settled, ps, getattr(ps, name)))
    return ps


def _settled(ps: Client, change: Callable[..., T], *words: Any, **options: Any) -> T:
    done = patiently(partial(change, *words, **options))
    waited(lambda: informed(ps))
    return done


def gateways_in(told: dict[str, Any]) -> set[int]:
    """The processes of those that are ready."""
    return {int(gateway["pid"]) for gateway in told["gateways"] if gateway["ready"]}
