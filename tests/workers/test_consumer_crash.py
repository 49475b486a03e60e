"""Replicas that die, and connections that do: no accepted request without an answer, and only the culprit fails."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.beats import READY, STARTING
from core.settings import Settings
from core.topology import new_instance
from tests.running import clean_environment
from tests.services import Broker
from tests.toxics import Toxics
from tests.workers.asking import BOUND_S, Replica, gateway_at, until
from tests.workers.consuming import ALWAYS, HANGS, SLOW
from tests.workers.samples import array_of, batch_of, failure_in, python_file, rows, version
from workers.child import Child
from workers.child_link import ChildLink
from workers.consumer import Consumer
from workers.messages import Failure
from workers.watchdog import HUNG, SECOND


class Others:
    """Replicas in processes of their own."""

    def __init__(self, url: str, held: Path) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.ended: list[int] = []
        """The exit codes of those that `keep` found dead."""
        self.patience_s = 10.0
        self._url = url
        self._held = held
        held.touch()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.workers.consuming", self._url, str(self._held), str(self.patience_s)]
        self.running.append(subprocess.Popen(command, env=clean_environment()))

    def go(self) -> None:
        """What is slow ends."""
        self._held.unlink()

    async def keep(self, count: int) -> None:
        """Start another for each that dies, for ever."""
        while True:
            self.ended += [process.returncode for process in self.running if process.poll() is not None]
            self.running = [process for process in self.running if process.returncode is None]
            for _ in range(count - len(self.running)):
                self.start()
            await asyncio.sleep(0.02)


@pytest.fixture
def others(amqp_url: str, tmp_path: Path) -> Iterator[Others]:
    others = Others(amqp_url, tmp_path / "held")
    yield others
    for process in others.running:
        process.kill()
        process.wait()


def values(results: list[Any]) -> list[Any]:
    return [result.reason if isinstance(result, Failure) else float(array_of(result)[0, 0]) for result in results]


async def test_killed_mid_batch_its_members_are_answered_one_by_one_by_another(amqp_url: str, others: Others) -> None:
    """Of the batch that ran and of those that only waited; the gateway is told at once that they are being tried."""
    async with gateway_at(amqp_url) as asking:
        others.start()
        await asking.until_ready()
        slow = await asking.ask(batch_of(rows(1), rows(SLOW), rows(3)))
        waiting = [await asking.ask(batch_of(rows(at), rows(at + 1))) for at in range(10, 14)]
        await until(lambda: asking.heard[-1].in_flight == 5)
        others.running[0].send_signal(signal.SIGKILL)
        async with Replica(amqp_url) as second:
            assert values(await slow.done()) == [2, 2 * SLOW, 6]
            for at, answer in enumerate(waiting, 10):
                assert values(await answer.done()) == [2 * at, 2 * at + 2]
                assert answer.headers[0] == {"sequence": 0, "final": False}
                assert {header["member"] for header in answer.headers[1:]} == {0, 1}
            assert second.model.sizes == [1] * 11
            assert await asking.poison() == []


@contextlib.asynccontextmanager
async def kept(others: Others, count: int) -> AsyncIterator[None]:
    keeping = asyncio.create_task(others.keep(count))
    try:
        yield
    finally:
        keeping.cancel()


async def test_all_but_the_culprit_are_answered(amqp_url: str, others: Others) -> None:
    """A member that kills its process each time is given up after three tries by itself: a typed error for its caller,
    a record of cause and digest for the operator; everybody beside it gets their rows."""
    async with gateway_at(amqp_url) as asking, kept(others, 2):
        await asking.until_ready(2)
        answer = await asking.ask(batch_of(rows(1), rows(ALWAYS), rows(3)))
        beside = [await asking.ask(batch_of(rows(at))) for at in range(20)]
        results = await answer.done(60)
        assert values(results) == [2, "model_failed", 6]
        for at, other in enumerate(beside):
            assert values(await other.done()) == [2 * at]
        (record,) = await asking.poison()
        failure = failure_in(results[1])
        assert record["error_id"] == failure.error_id
        assert (record["model"], record["version"]) == ("m", 1)
        assert "3 tries" in record["cause"]
        assert len(record["digest"]) == len(hashlib.sha256().hexdigest())
        assert record["when"] > 0
        await until(lambda: len(others.running) == 2)


async def test_several_culprits_do_not_take_the_innocent_with_them(amqp_url: str, others: Others) -> None:
    async with gateway_at(amqp_url) as asking, kept(others, 2):
        await asking.until_ready(2)
        answers = [await asking.ask(batch_of(rows(at), rows(ALWAYS if at % 4 == 3 else at))) for at in range(8)]
        for at, answer in enumerate(answers):
            second = "model_failed" if at % 4 == 3 else 2 * at
            assert values(await answer.done(90)) == [2 * at, second]


async def test_one_that_hangs_the_model_is_given_up_too(amqp_url: str, others: Others) -> None:
    """For ever, on the thread of a replica's own process: that is ended and replaced, those beside it are answered, and
    after its tries it goes the way of what kills."""
    others.patience_s = 0.1
    async with gateway_at(amqp_url) as asking, kept(others, 2):
        await asking.until_ready(2)
        answer = await asking.ask(batch_of(rows(1), rows(HANGS), rows(3)))
        beside = [await asking.ask(batch_of(rows(at))) for at in range(20)]
        assert values(await answer.done(60)) == [2, "model_failed", 6]
        for at, other in enumerate(beside):
            assert values(await other.done()) == [2 * at]
        (record,) = await asking.poison()
        assert record["error_id"] == failure_in(answer.results[1]).error_id
        assert "3 tries" in record["cause"]
        await until(lambda: len(others.ended) >= 4 and len(others.running) == 2)
        assert others.ended == [HUNG] * 4


async def test_one_that_hangs_past_its_deadline_leaves_a_record(amqp_url: str, others: Others) -> None:
    """Nobody waits for it any more, so it is not tried again; who waits behind it is answered by the next process."""
    others.patience_s = 0.1
    async with gateway_at(amqp_url) as asking, kept(others, 1):
        await asking.until_ready()
        now = time.monotonic_ns()
        await asking.ask(batch_of(rows(HANGS), deadlines=[now + SECOND]), expiration=1)
        await until(lambda: asking.heard[-1].in_flight == 1)
        behind = await asking.ask(batch_of(rows(2), rows(3), deadlines=[now + 60 * SECOND] * 2), expiration=60)
        assert values(await behind.done()) == [4, 6]
        (record,) = await asking.poison()
        assert "hung" in record["cause"]
        assert others.ended == [HUNG]


async def test_a_process_told_to_end_drains(amqp_url: str, others: Others) -> None:
    """Under load: exit 0, nothing delivered twice."""
    async with gateway_at(amqp_url) as asking:
        others.start()
        await asking.until_ready()
        answers = [await asking.ask(batch_of(rows(at))) for at in range(500)]
        others.running[0].send_signal(signal.SIGTERM)
        async with Replica(amqp_url):
            for at, answer in enumerate(answers):
                assert values(await answer.done()) == [2 * at]
                assert answer.headers == [{"sequence": 0, "final": True}]
        assert await asyncio.to_thread(others.running[0].wait, BOUND_S) == 0


# --- a child process that dies ------------------------------------------------------------------------------------

DEADLY = """
import os, time

class Model:
    def predict(self, inputs):
        x = inputs["x"]
        if (x == 666).any():
            os.kill(os.getpid(), 9)
        if (x == 555).any():
            time.sleep(1000)
        return {"y": x * 2}
"""


@contextlib.asynccontextmanager
async def with_child(url: str, folder: Path) -> AsyncIterator[tuple[Child, Consumer]]:
    """A replica whose model runs in a child process of its own."""
    made, settings = version(kind="python", entry="Model"), Settings(compute_threads=1)
    child = Child(made, python_file(folder, DEADLY), None, settings, lambda *_: None)
    note = await child.start()
    consumer = Consumer(url, new_instance("replica"), made)
    consumer.serve(ChildLink(child), note)
    running = asyncio.create_task(consumer.run())
    try:
        yield child, consumer
    finally:
        await consumer.drain(5.0)
        await asyncio.wait_for(running, BOUND_S)
        await child.close()


async def test_a_model_that_kills_its_child_is_tried_by_itself_too(amqp_url: str, tmp_path: Path) -> None:
    """The replica lives on: its neighbours are answered when the child is back, the culprit after its tries."""
    async with gateway_at(amqp_url) as asking, with_child(amqp_url, tmp_path) as (child, consumer):
        await asking.until_ready()
        before = child.pid
        answer = await asking.ask(batch_of(rows(1), rows(ALWAYS), rows(3)))
        beside = [await asking.ask(batch_of(rows(at))) for at in range(5)]
        assert values(await answer.done(60)) == [2, "model_failed", 6]
        for at, other in enumerate(beside):
            assert values(await other.done()) == [2 * at]
        assert child.pid != before
        assert len(await asking.poison()) == 1
        assert consumer.in_flight == 0


async def test_while_the_child_is_away_no_more_is_taken(amqp_url: str, tmp_path: Path) -> None:
    """Its beats say that it starts, so gateways look elsewhere; what it took waits for the child, and is no suspect."""
    async with gateway_at(amqp_url) as asking, with_child(amqp_url, tmp_path) as (child, consumer):
        await asking.until_ready()
        slow = await asking.ask(batch_of(rows(SLOW), deadlines=[time.monotonic_ns() + 10**9]))
        await until(lambda: consumer.in_flight == 1)
        os.kill(child.pid or 0, signal.SIGKILL)
        await until(lambda: asking.heard[-1].state == STARTING and not consumer.consuming)
        assert "started again" in asking.heard[-1].reason
        later = await asking.ask(batch_of(rows(2)))
        assert values(await later.done()) == [4]
        assert later.headers == [{"sequence": 0, "final": True}]
        await until(lambda: asking.heard[-1].state == READY)
        assert values(await slow.done()) == ["deadline_exceeded"]


# --- connections that end -----------------------------------------------------------------------------------------


async def test_a_connection_that_is_cut_comes_back_and_nothing_is_lost(amqp_url: str, toxiproxy: Toxics) -> None:
    """What was not acknowledged is delivered again, here, and answered; what ran meanwhile is answered to nobody."""
    link = toxiproxy.link(amqp_url)
    async with gateway_at(amqp_url) as asking, Replica(link.url) as replica:
        await asking.until_ready()
        replica.model.gate.clear()
        answers = [await asking.ask(batch_of(rows(at), rows(-at))) for at in range(6)]
        await until(lambda: replica.consumer.in_flight == 6)
        link.cut()
        await until(lambda: replica.consumer.in_flight == 0)
        replica.model.gate.set()
        link.mend()
        for at, answer in enumerate(answers):
            assert values(await answer.done()) == [2 * at, -2 * at]
            assert set(answer.parts) == {0, 1}
        again = await asking.ask(batch_of(rows(7)))
        assert values(await again.done()) == [14]
        assert again.headers == [{"sequence": 0, "final": True}]


async def test_a_connection_that_goes_silent_is_given_up(amqp_url: str, toxiproxy: Toxics) -> None:
    """Half-open: no end is told, no byte arrives. Another replica answers what this one holds; then it is back."""
    link = toxiproxy.link(amqp_url)
    async with gateway_at(amqp_url) as asking, Replica(link.url) as silent:
        await asking.until_ready()
        silent.model.gate.clear()
        answer = await asking.ask(batch_of(rows(1), rows(2)))
        await until(lambda: silent.consumer.in_flight == 1)
        link.hold()
        async with Replica(amqp_url):
            assert values(await answer.done()) == [2, 4]
            await until(lambda: silent.consumer.in_flight == 0)
            link.mend()
            silent.model.gate.set()
            await asking.until_ready(2)


async def test_a_broker_that_dies_and_comes_back_is_served_again(broker: Broker) -> None:
    """What lay there is gone with it, and the gateway's to send again."""
    async with gateway_at(broker.url) as before, Replica(broker.url) as replica:
        await before.until_ready()
        await asyncio.to_thread(broker.kill)
        await until(lambda: not replica.consumer.consuming)
        await asyncio.to_thread(broker.start)
        async with gateway_at(broker.url) as asking:
            await asking.until_ready()
            assert values(await (await asking.ask(batch_of(rows(1)))).done()) == [2]
