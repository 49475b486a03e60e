"""Faults in the production shape, under load: every request has one outcome, and it is soon as it was.

The load is 60 % of what two replicas of a slow model bear. The ledger (`ledger.py`) is written before a request is
sent; refusals (503 with Retry-After) are counted apart, and bounded for each fault by the time that it may last.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aio_pika
import httpx
import penstock
import psutil
import pytest
from penstock.client import Client
from penstock.errors import PenstockError

from core.topology import POISON, infer_queue
from tests.e2e.ledger import Grpc, Load, Rest, load, reached
from tests.production import Production, gateways_in, patiently, push_numbered, ready, ready_in, settled, status, waited

COMPUTE_S, ROWS, REPLICAS = 0.1, 4, 2
KNEE = REPLICAS * ROWS / COMPUTE_S
RATE = 0.6 * KNEE
DEADLINE_S = 20.0
ABOARD = 2 * REPLICAS * 2 * ROWS
"""Requests in flight at most: about two batches for each replica, rounded up at each of two gateways."""
ANSWERED_S = DEADLINE_S + 2
"""Within which every request has its outcome, whatever happens: its deadline, and the grace of whoever tells it. Far
enough that a machine which runs other tests beside these is slow, not late."""
OUTPUTS = [{"name": name, "datatype": "FP32", "shape": [-1, 1]} for name in ("y", "version")]
SIGNATURE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}], "outputs": OUTPUTS}
MODELS = f'''\
import os
import time

import numpy as np


class Slow:
    """Takes its time; answers as version 1 of a numbered model does."""

    def predict(self, inputs):
        time.sleep({COMPUTE_S})
        x = inputs["x"]
        return {{"y": x + 1, "version": np.full_like(x, 1)}}


class Touchy(Slow):
    """Raises at -1, and ends its process at -2."""

    def predict(self, inputs):
        if (inputs["x"] == -1).any():
            raise ValueError("no such customer")
        if (inputs["x"] == -2).any():
            os._exit(9)
        return super().predict(inputs)


class Broken(Slow):
    def load(self):
        raise RuntimeError("no such table")
'''


@pytest.fixture(scope="module")
def ps(production: Production) -> Iterator[Client]:
    server = production.server
    with settled(penstock.connect(server.url, control=server.control, api_key=server.api_key)) as client:
        yield client


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("models") / "models.py"
    file.write_text(MODELS)
    return file


def push_class(ps: Client, source: Path, entry: str, name: str, deadline_s: float = DEADLINE_S) -> None:
    options: dict[str, Any] = {"max_batch": ROWS, "allow_code": True, "default_deadline_ms": int(deadline_s * 1000)}
    ps.push(f"{source}:{entry}", name, signature=SIGNATURE, **options)


def two_replicas(ps: Client, model: str) -> None:
    ps.deploy(model, replicas=REPLICAS, max_replicas=REPLICAS)
    waited(lambda: len(ready(ps, model)) == REPLICAS)


@pytest.fixture(scope="module")
def slow(ps: Client, source: Path) -> str:
    """A class that takes its time, in a process of its own beside the replica; two replicas of it."""
    push_class(ps, source, "Slow", "slow")
    two_replicas(ps, "slow")
    return "slow"


@pytest.fixture
async def site(production: Production, ps: Client, slow: str, tmp_path: Path) -> Site:
    await until_whole(production, ps, slow)
    return Site(production, ps, slow, tmp_path)


class Site(NamedTuple):
    production: Production
    ps: Client
    slow: str
    folder: Path

    def load(self, model: str = "", rate: float = RATE) -> AbstractAsyncContextManager[Load]:
        return load(Rest(self.production.server, model or self.slow), self.folder / "ledger", rate)


async def until_whole(production: Production, ps: Client, model: str) -> None:
    """Both replicas and both gateways serve."""

    def whole() -> bool:
        told, living = status(ps), {process.pid for process in production.processes("server.gateway_process")}
        return len(ready_in(told, model)) == REPLICAS and gateways_in(told) == living and len(living) == 2

    await asyncio.to_thread(waited, whole)


# --- replicas -----------------------------------------------------------------------------------------------------


async def test_a_replica_is_killed_mid_batch(site: Site) -> None:
    """What it had is answered by the other one, or refused in time; another takes its place."""
    async with site.load() as asking:
        await asking.more()
        victim = ready(site.ps, site.slow)[0]
        os.kill(victim["pid"], signal.SIGKILL)
        await asking.more(150)
        await asyncio.to_thread(
            waited, lambda: len({r["instance"] for r in ready(site.ps, site.slow)} - {victim["instance"]}) == REPLICAS
        )
        await asking.more()
    asking.ledger.check("version 1", refused=round(5 * RATE), within=ANSWERED_S)


async def test_a_replica_hangs_mid_batch(site: Site) -> None:
    """Stopped where it is, and let go on later: what it had is sent to the other one, and answered once."""
    async with site.load() as asking:
        await asking.more()
        stopped = psutil.Process(ready(site.ps, site.slow)[0]["pid"])
        stopped.suspend()
        try:
            await asking.more(150)
        finally:
            stopped.resume()
        await asking.more()
    asking.ledger.check("version 1", refused=round(5 * RATE), within=ANSWERED_S)


async def test_what_is_delivered_twice_is_answered_once(site: Site) -> None:
    """Every batch that a stranger at the queue gets hold of goes on to the replicas twice."""
    async with site.load() as asking, doubling(site.production, site.slow) as doubled:
        await reached(lambda: doubled[0] > 20, 60, asking.ledger)
        await asking.more()
    asking.ledger.check("version 1", refused=round(2 * RATE), within=ANSWERED_S)


@asynccontextmanager
async def doubling(production: Production, model: str) -> AsyncIterator[list[int]]:
    """The number of messages that were doubled so far."""
    doubled = [0]
    async with await aio_pika.connect(production.broker.url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(infer_queue(model, 1))

        async def twice(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            again = aio_pika.Message(message.body, **_properties(message))
            for copy in range(1 if "doubled" in message.headers else 2):
                again.message_id = f"{message.message_id}-{copy}"
                await channel.default_exchange.publish(again, queue.name)
                doubled[0] += copy
            await message.ack()

        tag = await queue.consume(twice)
        yield doubled
        await queue.cancel(tag)


def _properties(message: aio_pika.abc.AbstractIncomingMessage) -> dict[str, Any]:
    return {
        "headers": {**message.headers, "doubled": True},
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "expiration": message.expiration,
        "delivery_mode": message.delivery_mode,
    }


# --- poison -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def touchy(ps: Client, source: Path) -> str:
    push_class(ps, source, "Touchy", "touchy", 2 * DEADLINE_S)  # time for a process to end and start four times
    two_replicas(ps, "touchy")
    return "touchy"


async def ask(site: Site, model: str, x: float, timeout_s: float = DEADLINE_S) -> httpx.Response:
    server = site.production.server
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [x]}],
        "parameters": {"timeout": round(timeout_s * 1e6)},
    }
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {server.api_key}"}, timeout=60) as client:
        return await client.post(f"{server.url}/v2/models/{model}/infer", json=body)


async def test_input_that_raises_fails_alone(site: Site, touchy: str) -> None:
    """Whoever shares its batch is answered."""
    async with site.load(touchy) as asking:
        await asking.more()
        answers = await asyncio.gather(*(ask(site, touchy, -1) for _ in range(20)))
        await asking.more()
    assert {answer.status_code for answer in answers} == {500}
    assert all(answer.json()["error_id"] for answer in answers)
    assert not any("customer" in answer.text for answer in answers)
    asking.ledger.check("version 1", within=ANSWERED_S)


async def test_input_that_kills_the_process_is_given_up(site: Site, touchy: str) -> None:
    """After a few tries by itself; its caller hears, a record is kept of cause and digest, the others are answered."""
    before = await poisoned(site.production)
    async with site.load(touchy) as asking:
        await asking.more()
        answer = await ask(site, touchy, -2, timeout_s=50)
        await asyncio.to_thread(waited, lambda: len(ready(site.ps, touchy)) == REPLICAS)
        await asking.more()
    assert answer.status_code in (500, 503, 504), answer.text
    assert answer.json()["error"]
    await reached_poison(site.production, before + 1)
    asking.ledger.check("version 1", refused=math.ceil(DEADLINE_S * RATE), within=2 * ANSWERED_S)


async def poisoned(production: Production) -> int:
    """Records of what was given up."""
    async with await aio_pika.connect(production.broker.url) as connection:
        channel = await connection.channel()
        try:
            queue = await channel.declare_queue(POISON, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return 0
        return queue.declaration_result.message_count or 0


async def reached_poison(production: Production, count: int) -> None:
    async with asyncio.timeout(30):
        while await poisoned(production) < count:
            await asyncio.sleep(0.1)


# --- the broker, the repository -----------------------------------------------------------------------------------


async def test_the_broker_restarts(site: Site) -> None:
    """Killed and started again: fast refusals meanwhile, and all recovers by itself."""
    async with site.load() as asking:
        await asking.more()
        begun = time.monotonic()
        await asyncio.to_thread(site.production.broker.kill)
        await asking.refused()
        await asyncio.to_thread(site.production.broker.start)
        away = time.monotonic() - begun
        await asking.more(150)
    asking.ledger.check("version 1", refused=round((away + 20) * RATE), within=ANSWERED_S)


@pytest.mark.parametrize("how", ["cut", "hold"])
async def test_the_way_to_the_broker_is_gone_for_ten_seconds(site: Site, how: str) -> None:
    """Cut, or half-open: connections stand and nothing arrives."""
    way = site.production.way
    async with site.load() as asking:
        await asking.more()
        await asyncio.to_thread(getattr(way, how))
        try:
            await asyncio.sleep(10)
            await asking.refused()
        finally:
            await asyncio.to_thread(way.mend)
        await asking.more(150)
    asking.ledger.check("version 1", refused=round(25 * RATE), within=ANSWERED_S)


async def test_the_repository_is_away(site: Site) -> None:
    """Predictions go on; writes are refused with 503 in two seconds meanwhile, and work again afterwards."""
    mongo = site.production.own("mongo")
    server = site.production.server
    async with site.load() as asking:
        await asking.more()
        await asyncio.to_thread(mongo.pause)
        try:
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {server.api_key}"}, timeout=30) as client:
                write = partial(client.post, f"{server.control}/api/v1/keys", json={"name": "late"})
                answers = [await write() for _ in range(3)]
            assert {answer.status_code for answer in answers} == {503}
            assert min(answer.elapsed.total_seconds() for answer in answers) < 2.5  # the others may have been held up
            await asking.more(250)
        finally:
            mongo.resume()
        await asyncio.to_thread(patiently, lambda: site.ps.keys.create("late"))
        await asking.more()
    asking.ledger.check("version 1", within=ANSWERED_S)


# --- updates ------------------------------------------------------------------------------------------------------


async def test_versions_roll_forward_and_back(site: Site) -> None:
    """v1 → v2 → v1 → v2 → v3: each answer is of one of them alone, and none is refused."""
    await asyncio.to_thread(push_numbered, site.ps, site.folder, "rolling", 1)
    async with site.load("rolling") as asking:

        async def answers_as(version: int) -> None:
            seen = asking.ledger.seen[f"version {version}"]
            await reached(lambda: asking.ledger.seen[f"version {version}"] > seen + 50, 60, asking.ledger)

        await answers_as(1)
        await asyncio.to_thread(push_numbered, site.ps, site.folder, "rolling", 2)
        await answers_as(2)
        for version in (1, 2):
            await asyncio.to_thread(site.ps.alias, "rolling", "champion", version)
            await answers_as(version)
        await asyncio.to_thread(push_numbered, site.ps, site.folder, "rolling", 3)
        await asyncio.to_thread(site.ps.unalias, "rolling", "champion")
        await answers_as(3)
    asking.ledger.check("version 1", "version 2", "version 3", within=ANSWERED_S)


async def test_a_failing_update_leaves_the_old_version_serving(site: Site, source: Path) -> None:
    """The pusher hears why; nobody else notices."""
    async with site.load() as asking:
        await asking.more()
        with pytest.raises(PenstockError, match="no such table"):
            await asyncio.to_thread(push_class, site.ps, source, "Broken", site.slow)
        await asking.more()
    asking.ledger.check("version 1", within=ANSWERED_S)


# --- our own processes, and Ray -----------------------------------------------------------------------------------


async def test_the_driver_of_the_workers_is_killed(site: Site) -> None:
    """Replicas serve on as they are; the next driver finds them, and takes what is pushed."""
    before = {replica["instance"] for replica in ready(site.ps, site.slow)}
    (driver,) = site.production.processes("workers")
    async with site.load() as asking:
        await asking.more()
        driver.kill()
        await asyncio.to_thread(push_numbered, site.ps, site.folder, "later", 5)
        await asking.more()
    asking.ledger.check("version 1", within=ANSWERED_S)
    assert {replica["instance"] for replica in ready(site.ps, site.slow)} == before


STOPS = 20


async def test_gateways_are_told_to_stop_twenty_times(site: Site) -> None:
    """Each in its turn, as a rolling update does: no request fails, on kept connections and on new ones. Of gRPC, whose
    library takes no listening socket, calls may meet a connection that is being made: two a stop at most; and it
    cancels what comes in the very moment of its stop: of eleven a second, in a millisecond or two each, hardly any."""
    calls = load(Grpc(site.production.server, site.slow), site.folder / "calls", RATE / 8)
    async with site.load(rate=RATE / 2) as asking, calls as calling:
        for _ in range(STOPS):
            await until_whole(site.production, site.ps, site.slow)
            oldest = min(site.production.processes("server.gateway_process"), key=lambda process: process.create_time())
            oldest.terminate()
            await asyncio.to_thread(oldest.wait, 30)
        await until_whole(site.production, site.ps, site.slow)
        await asking.more()
    asking.ledger.check("version 1", within=ANSWERED_S)
    calling.ledger.check("version 1", refused=2 * STOPS, cancelled=STOPS // 4, within=ANSWERED_S)


async def test_the_head_of_ray_restarts(site: Site) -> None:
    """It takes every replica with it. Refusals meanwhile; then a new driver joins the new cluster and starts them."""
    ray = site.production.own("ray")
    async with site.load() as asking:
        await asking.more()
        begun = time.monotonic()
        await asyncio.to_thread(ray.kill)
        await asking.refused()
        await asyncio.to_thread(ray.start)
        await asking.more(150, within=180)
        away = time.monotonic() - begun
    asking.ledger.check("version 1", refused=round(away * RATE), expired=ABOARD, within=ANSWERED_S)
