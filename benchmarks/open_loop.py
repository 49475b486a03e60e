"""Open-loop load: requests leave at scheduled times whether answers come or not, and are timed from the schedule.

A closed loop waits for its answers and so never sees the queue that it would have met. Here a request that finds
every connection busy waits, and its wait counts.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import NamedTuple

from benchmarks.load import HttpTarget
from loadtests.http_client import Connection, http_request


class Answer(NamedTuple):
    """`latency`: seconds from the scheduled send. `status` 0: the connection broke."""

    latency: float
    status: int


class Offered(NamedTuple):
    answers: list[Answer]
    seconds: float
    client_cpu: float
    """Share of one core that the client took; near 1 it measured itself."""


async def offer(target: HttpTarget, rate: float, seconds: float, connections: int = 512, seed: int = 0) -> Offered:
    """Poisson arrivals at `rate` a second for `seconds`; returns when the last is answered."""
    request, host, port = http_request(target.url, target.body, target.headers)
    pool = _Pool(request, [await Connection.open(host, port) for _ in range(connections)])
    arrivals = random.Random(seed)
    cpu, begin = time.process_time(), time.perf_counter()
    due = begin
    while due < begin + seconds:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        pool.send(due)
        due += arrivals.expovariate(rate)
    await pool.settled()
    spent = time.perf_counter() - begin
    await pool.close()
    return Offered(pool.answers, seconds, (time.process_time() - cpu) / spent)


class _Pool:
    def __init__(self, request: bytes, connections: list[Connection]) -> None:
        self._request = request
        self._all = connections
        self._idle = deque(connections)
        self._waiting: deque[float] = deque()
        self._in_flight = 0
        self._settled = asyncio.Event()
        self.answers: list[Answer] = []

    def send(self, due: float) -> None:
        if not self._idle:
            self._waiting.append(due)
            return
        connection = self._idle.popleft()
        self._in_flight += 1
        connection.call(self._request).add_done_callback(lambda answer: self._answered(connection, due, answer))

    def _answered(self, connection: Connection, due: float, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        self.answers.append(Answer(time.perf_counter() - due, answer.result()[0]))
        self._in_flight -= 1
        if connection.is_open:
            self._idle.append(connection)
        if self._waiting and self._idle:
            self.send(self._waiting.popleft())
        self._settled.set()

    async def settled(self) -> None:
        """Until nothing is in flight; requests that no connection is left for count as broken."""
        while self._in_flight:
            self._settled.clear()
            await self._settled.wait()
        now = time.perf_counter()
        self.answers += [Answer(now - due, 0) for due in self._waiting]

    async def close(self) -> None:
        for connection in self._all:
            await connection.close()
