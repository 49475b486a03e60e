"""A gateway at the broker as a test writes it, and a replica's consumer that runs beside it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import msgspec
from aio_pika.abc import AbstractIncomingMessage

from core import beats
from core.beats import READY, GatewayBeat, ReplicaBeat
from core.broker import exchanges
from core.topology import (
    BOOT,
    INFER_ARGUMENTS,
    INSTANCE,
    POISON,
    POISON_ARGUMENTS,
    cancel_key,
    infer_queue,
    new_instance,
    reply_queue,
    suspect_queue,
)
from repository.records import Signature, Version
from tests.unreadable import Properties, publish
from tests.workers.samples import version
from workers.consumer import Consumer
from workers.execution import Runner
from workers.merge import Arrays
from workers.messages import Batch, Failure, Output, Reply, Scalar, decode, encode
from workers.worker import Timed, Worker

BOUND_S = 30.0
Result = list[Output] | Failure


async def until(condition: Callable[[], object], bound: float = BOUND_S) -> None:
    """Wait for `condition`, at most `bound` seconds."""
    async with asyncio.timeout(bound):
        while not condition():
            await asyncio.sleep(0.005)


class Answer:
    """All that came back for one batch: `parts` by member (None: of the whole batch), with their headers."""

    def __init__(self, members: int) -> None:
        self.parts: dict[int | None, list[Result]] = {}
        self.headers: list[dict[str, Any]] = []
        self.timing: Any = None
        self._members = members
        self._changed = asyncio.Event()

    def take(self, message: AbstractIncomingMessage) -> None:
        headers = dict(message.headers)
        self.headers.append(headers)
        if message.body:
            reply = decode(message.body)
            assert isinstance(reply, Reply)
            assert str(reply.id) == message.correlation_id
            member = headers.get("member")
            assert member is None or type(member) is int
            self.parts[member] = reply.results
            self.timing = reply.timing
        self._changed.set()

    @property
    def results(self) -> list[Result]:
        """One a member, once they are all there."""
        return self.parts.get(None) or [self.parts[at][0] for at in range(self._members)]

    @property
    def whole(self) -> bool:
        return None in self.parts or len(self.parts) == self._members

    async def done(self, bound: float = BOUND_S) -> list[Result]:
        await until(lambda: self.whole, bound)
        return self.results


class Asking:
    """One gateway. `boot` and `clock` may be those of another host."""

    def __init__(self, url: str, made: Version, boot: str = "", clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.instance = new_instance("gateway")
        self.version = made
        self.boot = boot or beats.boot_id()
        self.heard: list[ReplicaBeat] = []
        self.answers: dict[int, Answer] = {}
        self._clock = clock
        self._url = url
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        model, number = self.version.model, self.version.version
        self._connection = await aio_pika.connect(self._url)
        self.channel = await self._connection.channel(on_return_raises=True)
        self._events, self._beats = await exchanges(self.channel)
        self._replies = await self.channel.declare_queue(reply_queue(self.instance), exclusive=True)
        await self._replies.consume(self._reply, no_ack=True)
        ears = await self.channel.declare_queue(exclusive=True)
        await ears.bind(self._beats, "replica.#")
        await ears.consume(self._beat, no_ack=True)
        for queue in (infer_queue(model, number), suspect_queue(model, number)):
            await self.channel.declare_queue(queue, durable=True, arguments=dict(INFER_ARGUMENTS))

    async def close(self) -> None:
        await self._connection.close()

    async def ask(self, batch: Batch, **changes: Any) -> Answer:
        """Publish a batch under an id of this gateway's own."""
        batch = msgspec.structs.replace(batch, id=changes.pop("number", None) or next(self._numbers))
        answer = self.answers[batch.id] = Answer(len(batch.members))
        await self.publish(b"".join(encode(batch))[4:], correlation_id=str(batch.id), **changes)
        return answer

    async def publish(self, body: bytes, queue: str = "", headers: dict[str, Any] | None = None, **more: Any) -> None:
        """Any message, to the version's infer queue unless another is named."""
        headers = {INSTANCE: self.instance, BOOT: self.boot} | (headers or {})
        properties = {"reply_to": self._replies.name} | more
        queue = queue or infer_queue(self.version.model, self.version.version)
        await self.channel.default_exchange.publish(
            aio_pika.Message(body, headers=headers, **properties), queue, mandatory=True
        )

    async def publish_unreadable(self, exchange: str, key: str, body: bytes, properties: Properties) -> None:
        """One whose properties no library reads."""
        channel = await self._connection.channel(publisher_confirms=False)
        await publish(channel, exchange.encode(), key.encode(), body, properties)

    async def cancel(self, number: int, members: list[int]) -> None:
        body = msgspec.msgpack.encode([[self.instance, number, members]])
        await self._events.publish(aio_pika.Message(body), cancel_key(self.version.model, self.version.version))

    async def beat(self) -> None:
        beat = GatewayBeat(sender=self.instance, boot=self.boot, sent=self._clock(), revision=1, ready=True, open=[])
        await self._beats.publish(aio_pika.Message(beats.encode(beat)), "gateway", mandatory=False)

    async def poison(self) -> list[dict[str, Any]]:
        """What lies in the poison queue, taken out."""
        queue = await self.channel.declare_queue(POISON, durable=True, arguments=dict(POISON_ARGUMENTS))
        records = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            records.append(msgspec.json.decode(message.body))
        return records

    async def waiting(self, queue: str = "") -> int:
        """Messages that lie in a queue, those delivered and not acknowledged left out."""
        queue = queue or infer_queue(self.version.model, self.version.version)
        declared = await self.channel.declare_queue(queue, durable=True, passive=True)
        return declared.declaration_result.message_count or 0

    async def exists(self, queue: str) -> bool:
        channel = await self._connection.channel()
        try:
            await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        await channel.close()
        return True

    async def until_ready(self, replicas: int = 1, within: float = BOUND_S) -> None:
        """By beats that are sent from now on, on this machine's clock, not by some that are still on their way."""
        begun = time.monotonic_ns()
        await until(
            lambda: len({b.sender for b in self.heard if b.state == READY and b.sent >= begun}) >= replicas, within
        )

    async def _reply(self, message: AbstractIncomingMessage) -> None:
        self.answers[int(message.correlation_id or 0)].take(message)

    async def _beat(self, message: AbstractIncomingMessage) -> None:
        beat = beats.decode(message.body)
        assert isinstance(beat, ReplicaBeat)
        self.heard.append(beat)


@asynccontextmanager
async def gateway_at(url: str, made: Version | None = None, **more: Any) -> AsyncIterator[Asking]:
    asking = Asking(url, made or version(), **more)
    await asking.open()
    try:
        yield asking
    finally:
        await asking.close()


class Doubler:
    """Doubles, but only while its gate is open; keeps the sizes of its executions."""

    def __init__(self) -> None:
        self.signature = Signature((), ())
        self.sizes: list[int] = []
        self.seen: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        self.sizes.append(inputs["x"].shape[0])
        self.seen += inputs["x"][:, 0].tolist()
        self.begun.set()
        assert self.gate.wait(BOUND_S)
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        self.gate.set()


class Replica:
    """A consumer with a worker in this process."""

    def __init__(self, url: str, made: Version | None = None, name: str = "") -> None:
        self.model = Doubler()
        made = made or version()
        loop = asyncio.get_running_loop()
        self.worker = Worker(Runner(made, self.model), [Timed(1, 0.001)], loop.call_soon_threadsafe)
        self.worker.start()
        self.consumer = Consumer(url, name or new_instance("replica"), made)

    async def __aenter__(self) -> Replica:
        self._running = asyncio.create_task(self.consumer.run())
        self.consumer.serve(self.worker, "a note")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.model.gate.set()
        await self.consumer.drain(5.0)
        await asyncio.wait_for(self._running, BOUND_S)
        await self.worker.close()
