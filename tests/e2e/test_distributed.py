"""The production shape on one machine, as `make up-distributed` starts it: RabbitMQ, MongoDB, Ray, two gateways."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import penstock
import psutil
import pytest
from penstock.client import Client
from penstock.errors import PenstockError

from tests.graphs import numbered
from tests.running import RunningServer, running
from tests.services import Own

WITHIN_S = 90.0
CALLERS = 4
SLOW = '''\
import time

class Slow:
    """Takes a while."""

    def predict(self, inputs):
        time.sleep(0.02)
        return {"y": inputs["x"]}
'''
BROKEN = """\
class Broken:
    def load(self):
        raise RuntimeError("no such table")

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""
SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    home = tmp_path_factory.mktemp("distributed") / "home"
    with running(home, "--distributed", samples="false", keep_alive_s="2") as server:
        yield server


@pytest.fixture(scope="module")
def ps(server: RunningServer) -> Iterator[Client]:
    with penstock.connect(server.url, control=server.control, api_key=server.api_key) as client:
        yield client


@pytest.fixture(scope="module")
def slow(ps: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A class that takes its time, in a process of its own beside the replica; two replicas of it."""
    source = tmp_path_factory.mktemp("slow") / "slow.py"
    source.write_text(SLOW)
    ps.push(f"{source}:Slow", "slow", signature=SIGNATURE, max_batch=4, allow_code=True)
    ps.deploy("slow", replicas=2, max_replicas=2)
    waited(lambda: len(ready(ps, "slow")) == 2)
    return "slow"


def push_numbered(ps: Client, folder: Path, name: str, number: int) -> int:
    """An ONNX model that answers x + number; the version's number."""
    artifact = folder / f"{number}.onnx"
    artifact.write_bytes(numbered(number))
    return int(ps.push(artifact, name, max_batch=16)["version"])


def waited(condition: Callable[[], object], within: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.1)


def status(ps: Client) -> dict[str, Any]:
    return dict(ps.status())


def ready(ps: Client, model: str) -> list[dict[str, Any]]:
    """The replicas of a model that serve."""
    models = {each["name"]: each for each in status(ps)["models"]}
    versions = models[model]["versions"] if model in models else []
    return [replica for version in versions for replica in version["where"] if replica["state"] == "READY"]


class Load:
    """Callers that ask one model again and again; what they saw is in `seen`: answers, or statuses as `-status`."""

    def __init__(self, server: RunningServer, model: str) -> None:
        self.seen: Counter[object] = Counter()
        self.longest = 0.0
        self._over = False
        self._tasks = [asyncio.create_task(self._ask(server, model)) for _ in range(CALLERS)]

    async def _ask(self, server: RunningServer, model: str) -> None:
        headers = {"Authorization": f"Bearer {server.api_key}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as client:
            while not self._over:
                begun = time.monotonic()
                self.seen[await self._one(client, f"{server.url}/v2/models/{model}/infer")] += 1
                self.longest = max(self.longest, time.monotonic() - begun)

    async def _one(self, client: httpx.AsyncClient, url: str) -> object:
        try:
            answer = await client.post(url, json=BODY)
        except httpx.HTTPError as error:
            return repr(error)
        return answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else -answer.status_code

    async def more(self, count: int, outcome: object = None) -> None:
        """Wait for that many more answers, or answers like that."""
        aim = self._of(outcome) + count
        async with asyncio.timeout(WITHIN_S):
            while self._of(outcome) < aim:
                await asyncio.sleep(0.02)

    def _of(self, outcome: object) -> int:
        return self.seen.total() if outcome is None else self.seen[outcome]


@asynccontextmanager
async def load(server: RunningServer, model: str) -> AsyncIterator[Load]:
    made = Load(server, model)
    try:
        yield made
    finally:
        made._over = True
        await asyncio.gather(*made._tasks)


def test_what_is_pushed_is_served_at_once(ps: Client, tmp_path: Path) -> None:
    """Through broker and replica, as soon as the push says that it is ready."""
    for name in ("first", "second"):
        assert push_numbered(ps, tmp_path, name, 7) == 1
        answer = ps.predict(name, np.array([[1.0], [2.0]], np.float32))
        assert np.asarray(answer["y"] if isinstance(answer, dict) else answer).ravel()[0] == 8.0


def test_code_runs_beside_the_replica(ps: Client, slow: str) -> None:
    """Not in the process that knows the broker's password."""
    for replica in ready(ps, slow):
        assert psutil.Process(replica["pid"]).children()


async def test_versions_change_under_load_without_a_failed_request(
    server: RunningServer, ps: Client, tmp_path: Path
) -> None:
    """v1 → v2 → v1 → v2 …: each answer is of one of the two, and none is an error."""
    await asyncio.to_thread(push_numbered, ps, tmp_path, "rolling", 1)
    async with load(server, "rolling") as asking:
        await asking.more(20, 1.0)
        await asyncio.to_thread(push_numbered, ps, tmp_path, "rolling", 2)
        await asking.more(20, 2.0)
        await asyncio.to_thread(ps.alias, "rolling", "champion", 1)
        await asking.more(20, 1.0)
        await asyncio.to_thread(ps.alias, "rolling", "champion", 2)
        await asking.more(20, 2.0)
        await asyncio.to_thread(push_numbered, ps, tmp_path, "rolling", 3)
        await asyncio.to_thread(ps.unalias, "rolling", "champion")
        await asking.more(20, 3.0)
    assert set(asking.seen) == {1.0, 2.0, 3.0}


async def test_a_failing_update_leaves_the_old_version_serving(
    server: RunningServer, ps: Client, tmp_path: Path
) -> None:
    """The pusher hears why; nobody else notices."""
    await asyncio.to_thread(push_numbered, ps, tmp_path, "steady", 1)
    bad = tmp_path / "broken.py"
    bad.write_text(BROKEN)
    async with load(server, "steady") as asking:
        with pytest.raises(PenstockError, match="no such table"):
            await asyncio.to_thread(
                ps.push, f"{bad}:Broken", "steady", signature=SIGNATURE, max_batch=4, allow_code=True
            )
        await asking.more(20)
    assert set(asking.seen) == {1.0}


async def test_a_killed_replica_costs_nobody_an_answer(server: RunningServer, ps: Client, slow: str) -> None:
    """Killed in the middle of its batches: they are answered by another, or with a 503 in time; it comes back."""
    async with load(server, slow) as asking:
        await asking.more(20)
        victim = ready(ps, slow)[0]
        os.kill(victim["pid"], signal.SIGKILL)
        await asking.more(100)
        await asyncio.to_thread(
            waited, lambda: len({r["instance"] for r in ready(ps, slow)} - {victim["instance"]}) == 2
        )
        await asking.more(20, 0.0)
    assert set(asking.seen) <= {0.0, -503}
    assert asking.seen[-503] <= 2 * CALLERS


async def test_a_replica_that_hangs_is_noticed(server: RunningServer, ps: Client, slow: str) -> None:
    """Stopped where it is: its batches go to the other one; nobody waits until a deadline."""
    await asyncio.to_thread(waited, lambda: len(ready(ps, slow)) == 2)
    async with load(server, slow) as asking:
        await asking.more(20)
        stopped = psutil.Process(ready(ps, slow)[0]["pid"])
        stopped.suspend()
        try:
            await asking.more(200)
        finally:
            stopped.resume()
    assert set(asking.seen) <= {0.0, -503}
    assert asking.seen[-503] <= 2 * CALLERS
    assert asking.longest < 15


async def test_the_broker_may_restart(server: RunningServer, ps: Client, slow: str) -> None:
    """Killed and started again: fast 503s meanwhile, every request has an answer, and all recovers by itself."""
    broker = Own(server.home, "rabbitmq")
    async with load(server, slow) as asking:
        await asking.more(20)
        await asyncio.to_thread(broker.kill)
        await asking.more(20, -503)
        await asyncio.to_thread(broker.start)
        await asking.more(50, 0.0)
    assert set(asking.seen) <= {0.0, -503}
    assert asking.longest < 35


async def test_predictions_go_on_while_the_repository_is_away(server: RunningServer, ps: Client, slow: str) -> None:
    """Writes are refused with 503 in about two seconds meanwhile, and work again afterwards."""
    mongo = Own(server.home, "mongo")
    async with load(server, slow) as asking:
        await asking.more(20)
        mongo.pause()
        try:
            begun = time.monotonic()
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {server.api_key}"}, timeout=30) as client:
                answer = await client.post(f"{server.control}/api/v1/keys", json={"name": "late"})
            assert answer.status_code == 503
            assert time.monotonic() - begun < 6
            await asking.more(100)
        finally:
            mongo.resume()
        await asyncio.to_thread(waited, lambda: ps.keys.create("late"))
    assert set(asking.seen) == {0.0}


async def test_the_workers_driver_may_die(server: RunningServer, ps: Client, slow: str, tmp_path: Path) -> None:
    """Killed outright: replicas serve on as they are; the next driver finds them, and takes what is pushed."""
    before = {replica["instance"] for replica in ready(ps, slow)}
    driver = next(child for child in psutil.Process(server.pid).children() if "workers" in child.cmdline())
    async with load(server, slow) as asking:
        driver.kill()
        await asyncio.to_thread(push_numbered, ps, tmp_path, "later", 5)
        await asking.more(20)
    assert set(asking.seen) == {0.0}
    assert {replica["instance"] for replica in ready(ps, slow)} == before
