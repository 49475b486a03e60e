"""What a client writes down: each request before it is sent, its one outcome when it comes.

A request carries its own number x, and a model answers x + its version and its version beside it (`tests/graphs.py`,
`numbered`): an answer that is another request's, or of a batch of two versions, shows. Requests come at a constant
rate whatever becomes of them, as from many clients, so whoever waits does not hold the others back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TextIO
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.running import RunningServer

ANSWER_S = 60.0
"""No request waits this long: models under test have a shorter deadline."""
KEPT_S = 1.0
"""Connections that have been idle for longer are not used again: the servers under test close them after two."""
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REFUSED, EXPIRED, CANCELLED = "refused", "expired", "cancelled"
GRPC_OUTCOMES = {"StatusCode.UNAVAILABLE": REFUSED, "StatusCode.CANCELLED": CANCELLED}
"""Cancelled: by gRPC's library, which so ends what comes in the moment that it stops, before anybody sees it
(grpc/grpc#41785)."""


class Ledger:
    """`file` takes one line a request, before it is sent, and one for each of its outcomes."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._numbers = itertools.count(1)
        self._outcomes: dict[int, list[str]] = {}
        self._took: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"<Ledger of {len(self._outcomes)} requests: {dict(self.seen)}, the longest took {self.longest:.1f} s>"

    def begin(self) -> int:
        """The number of a request that is about to be sent."""
        number = next(self._numbers)
        self._file.write(f"{number} sent\n")
        self._outcomes[number] = []
        return number

    def end(self, number: int, outcome: str, took: float) -> None:
        self._file.write(f"{number} {outcome} after {took:.3f} s\n")
        self._outcomes[number].append(outcome)
        self._took[number] = took

    @property
    def seen(self) -> Counter[str]:
        return Counter(outcome for outcomes in self._outcomes.values() for outcome in outcomes)

    @property
    def longest(self) -> float:
        """Seconds from its sending."""
        return max(self._took.values(), default=0.0)

    @property
    def answered(self) -> int:
        return sum(count for outcome, count in self.seen.items() if outcome.startswith("version"))

    def check(self, *answers: str, refused: int = 0, expired: int = 0, cancelled: int = 0, within: float) -> None:
        """Every request had exactly one outcome in that many seconds: one of `answers` (each of which came), or it was
        refused with 503 and Retry-After, or its deadline passed (504), or gRPC cancelled it; at most so many of
        these."""
        seen = self.seen
        twice_or_never = {number for number, outcomes in self._outcomes.items() if len(outcomes) != 1}
        assert not twice_or_never, (self, sorted(twice_or_never)[:10])
        assert set(answers) <= set(seen), self
        assert not set(seen) - {REFUSED, EXPIRED, CANCELLED, *answers}, self
        assert seen[REFUSED] <= refused, self
        assert seen[EXPIRED] <= expired, self
        assert seen[CANCELLED] <= cancelled, self
        assert self.longest < within, self


class Caller(Protocol):
    """One protocol, within `async with`."""

    async def __aenter__(self) -> Caller: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def ask(self, number: int) -> str:
        """Send the request of that number; its outcome."""


class Rest:
    """Half of them on connections that are kept, half on a new one each. Spoken by hand: a client library, with its
    coverage measured, takes more of a busy machine than the server under test."""

    def __init__(self, server: RunningServer, model: str) -> None:
        self._place = urlsplit(server.url)
        self._head = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {self._place.netloc}\r\n"
            f"Authorization: Bearer {server.api_key}\r\n"
        )
        self._kept: list[tuple[Connection, float]] = []

    async def __aenter__(self) -> Rest:
        return self

    async def __aexit__(self, *_: object) -> None:
        for (_reader, writer), _since in self._kept:
            writer.close()

    async def ask(self, number: int) -> str:
        body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,1],"data":[{number}]}}]}}'
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._ask(number, f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        except (OSError, EOFError, TimeoutError) as error:
            return repr(error)

    async def _ask(self, number: int, request: bytes) -> str:
        reader, writer = await self._connection(kept=number % 2 == 0)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        answer = await reader.readexactly(length)
        if number % 2 or "connection: close" in head:
            writer.close()
        else:
            self._kept.append(((reader, writer), time.monotonic()))
        return _outcome(number, int(head[9:12]), "\r\nretry-after: " in head, answer)

    async def _connection(self, kept: bool) -> Connection:
        while kept and self._kept:
            (reader, writer), since = self._kept.pop()
            if time.monotonic() - since < KEPT_S and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._place.hostname, self._place.port)


def _outcome(number: int, status: int, again: bool, answer: bytes) -> str:
    if status == 503 and again:
        return REFUSED
    if status == 504:
        return EXPIRED
    if status != 200:
        return f"{status} {answer[:200]!r}"
    outputs = {output["name"]: output["data"][0] for output in json.loads(answer)["outputs"]}
    return _answered(number, outputs["y"], outputs["version"])


class Grpc:
    """All over one channel of the client, which makes its connection anew when it is told to go."""

    def __init__(self, server: RunningServer, model: str) -> None:
        self._client = tritonclient.grpc.aio.InferenceServerClient(server.grpc)
        self._headers = {"authorization": f"Bearer {server.api_key}"}
        self._model = model

    async def __aenter__(self) -> Grpc:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, number: int) -> str:
        x = tritonclient.grpc.aio.InferInput("x", [1, 1], "FP32")
        x.set_data_from_numpy(np.array([[number]], np.float32))
        try:
            answer = await self._client.infer(self._model, [x], headers=self._headers, client_timeout=ANSWER_S)
        except InferenceServerException as error:
            return GRPC_OUTCOMES.get(error.status(), f"{error.status()} {error.message()!r}")
        return _answered(number, answer.as_numpy("y")[0, 0], answer.as_numpy("version")[0, 0])


def _answered(number: int, y: float, version: float) -> str:
    return f"version {version:g}" if y == number + version else f"wrong: {number} gave {y} of version {version}"


class Load:
    """`rate` requests a second by way of `caller`, and what became of them in `ledger`."""

    def __init__(self, caller: Caller, ledger: Ledger, rate: float) -> None:
        self.ledger = ledger
        self._caller = caller
        self._rate = rate
        self._over = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Send until told that it is over, then wait for what is out."""
        begun = time.monotonic()
        async with self._caller as caller:
            for at in itertools.count():
                due = begun + at / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if self._over.is_set():
                    break
                task = asyncio.create_task(self._one(caller))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            await asyncio.gather(*self._asking)

    def end(self) -> None:
        self._over.set()

    async def more(self, count: int = 50, within: float = 90.0) -> None:
        """Wait for that many more answers."""
        aim = self.ledger.answered + count
        await reached(lambda: self.ledger.answered >= aim, within, self.ledger)

    async def refused(self, count: int = 20, within: float = 30.0) -> None:
        """Wait for that many more refusals."""
        aim = self.ledger.seen[REFUSED] + count
        await reached(lambda: self.ledger.seen[REFUSED] >= aim, within, self.ledger)

    async def _one(self, caller: Caller) -> None:
        number, begun = self.ledger.begin(), time.monotonic()
        self.ledger.end(number, await caller.ask(number), time.monotonic() - begun)


async def reached(condition: Callable[[], object], within: float, what: object) -> None:
    """Wait until it is so, for `within` seconds at most."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not come to that in {within:g} s: {what!r}") from None


@asynccontextmanager
async def load(caller: Caller, file: Path, rate: float) -> AsyncIterator[Load]:
    """A model under load for as long as this lasts; at the end every request has its outcome."""
    with file.open("a", buffering=1) as lines:
        made = Load(caller, Ledger(lines), rate)
        running = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            made.end()
            await asyncio.wait_for(running, ANSWER_S + 10)
