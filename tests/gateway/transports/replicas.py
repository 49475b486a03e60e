"""A replica at the broker whose answers a test writes, and a gateway's hub to talk to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractIncomingMessage

from core import beats
from core.beats import READY, GatewayBeat, ReplicaBeat
from core.broker import exchanges
from core.settings import Settings
from core.topology import (
    FINAL,
    INFER_ARGUMENTS,
    MEMBER,
    SEQUENCE,
    cancel_key,
    infer_queue,
    new_instance,
    replica_key,
)
from gateway.hub import Hub
from gateway.transports.amqp import Amqp
from gateway.transports.fake import echo
from repository.records import Version
from tests.workers.samples import version
from workers.messages import Batch, Reply, Timing, decode, encode

BOUND_S = 20.0
BEAT_S = 0.2


ECHO = version(outputs=version().signature.inputs)
"""What replicas answer that have no script of their own: the inputs."""


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


async def until(condition: Callable[[], object], bound: float = BOUND_S) -> None:
    """Wait for `condition`, at most `bound` seconds."""
    async with asyncio.timeout(bound):
        while not condition():
            await asyncio.sleep(0.005)


def silent(replica: Replica, batch: Batch, message: AbstractIncomingMessage) -> None:
    """The script of a replica that takes batches and answers none."""


def body_of(reply: Reply) -> bytes:
    return b"".join(encode(reply))[4:]


Script = Callable[["Replica", Batch, AbstractIncomingMessage], Awaitable[None] | None]


class Replica:
    """Takes batches of one version, keeps them in `taken`, and answers as `script(self, batch, message)` does."""

    def __init__(self, url: str, version: Version, script: Script | None = None, prefetch: int = 16) -> None:
        self.name = new_instance("replica")
        self.state = READY
        self.warmup = [(1, 0.001), (32, 0.002)]
        self.taken: list[tuple[Batch, AbstractIncomingMessage]] = []
        self.cancelled: list[tuple[float, list[Any]]] = []
        self._url = url
        self._version = version
        self.script = script or (lambda replica, batch, message: replica.answer(batch, message))
        self._prefetch = prefetch
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        model, number = self._version.model, self._version.version
        self.connection = await aio_pika.connect(self._url)
        self.channel = await self.connection.channel(on_return_raises=False)
        await self.channel.set_qos(self._prefetch)
        self._events, self._beats = await exchanges(self.channel)
        heard = await self.channel.declare_queue(exclusive=True)
        await heard.bind(self._events, cancel_key(model, number))
        await heard.consume(self._hear, no_ack=True)
        await self.serve()
        await self.beat()
        self._tasks.append(asyncio.create_task(self._keep_beating()))

    async def serve(self) -> None:
        """Make the version's queue, and take from it."""
        name = infer_queue(self._version.model, self._version.version)
        arguments: dict[str, Any] = {**INFER_ARGUMENTS}
        queue = await self.channel.declare_queue(name, durable=True, arguments=arguments)
        await queue.consume(self._take)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.connection.close()

    async def answer(
        self, batch: Batch, message: AbstractIncomingMessage, reply: Reply | None = None, member: object = None
    ) -> None:
        """Send `reply`, or each member's inputs as its outputs."""
        reply = reply or Reply(batch.id, echo(batch), Timing(executed_rows=batch.rows))
        await self.send(message, body_of(reply), member)
        await message.ack()

    async def send(
        self, message: AbstractIncomingMessage, body: bytes, member: object = None, final: bool = True
    ) -> None:
        headers: dict[str, Any] = {SEQUENCE: 0, FINAL: final} | ({} if member is None else {MEMBER: member})
        assert message.reply_to is not None
        sent = aio_pika.Message(body, correlation_id=message.correlation_id, headers=headers)
        await self.channel.default_exchange.publish(sent, message.reply_to, mandatory=False)

    async def beat(self) -> None:
        beat = ReplicaBeat(
            sender=self.name,
            boot=beats.boot_id(),
            sent=time.monotonic_ns(),
            model=self._version.model,
            version=self._version.version,
            attempt=1,
            state=self.state,
            warmup=self.warmup,
        )
        key = replica_key(self._version.model, self._version.version)
        await self._beats.publish(aio_pika.Message(beats.encode(beat)), key, mandatory=False)

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self.beat()

    async def _take(self, message: AbstractIncomingMessage) -> None:
        batch = decode(message.body)
        assert isinstance(batch, Batch)
        self.taken.append((batch, message))
        answering = self.script(self, batch, message)
        if answering is not None:
            await answering

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        self.cancelled.append((time.monotonic(), msgspec.msgpack.decode(message.body)))


@asynccontextmanager
async def hub_at(
    url: str, settings: Settings | None = None, changed: Callable[[], None] = lambda: None
) -> AsyncIterator[Hub]:
    """A gateway's hub that runs; at the end it waits for no reply any more."""
    name = new_instance("gateway")

    def describe() -> GatewayBeat:
        return GatewayBeat(sender=name, boot=beats.boot_id(), sent=time.monotonic_ns(), revision=1, ready=True, open=[])

    hub = Hub(url, name, describe, changed, settings or Settings())
    running = asyncio.create_task(hub.run())
    try:
        yield hub
    finally:
        await asyncio.gather(*[transport.close() for transport in hub.transports])
        await hub.close()
        await asyncio.wait_for(running, BOUND_S)
    assert hub.line.aloft == 0


@asynccontextmanager
async def replica_at(url: str, version: Version, *args: Any, **more: Any) -> AsyncIterator[Replica]:
    replica = Replica(url, version, *args, **more)
    await replica.start()
    try:
        yield replica
    finally:
        await replica.stop()


async def opened(hub: Hub, version: Version, window: int = 2) -> Amqp:
    """A transport whose window is open, by so many batches."""
    transport = hub.transport(version)
    await until(lambda: transport.window == window)
    return transport
