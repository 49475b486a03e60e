"""What the reconciler hears and does at the broker (the control plane hears in the same way): beats in, `changed` in
and out, queues looked at and deleted.

Each second it sends a message to itself: that it comes back shows that beats would be heard, so that their absence
means something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage

from core import beats
from core.broker import Link, exchanges
from core.errors import Unavailable
from core.fleet import SILENT_AFTER_NS, Fleet
from core.topology import BEATS, CHANGED, EARS_ARGUMENTS, EVENTS, infer_queue, new_instance, suspect_queue

log = structlog.get_logger(__name__)

ECHO_S = 1.0
ANSWER_S = 5.0
BROKEN = (OSError, TimeoutError, aio_pika.exceptions.AMQPError, RuntimeError)


class Lookout:
    """`heard`: called after each beat; `changed`: when desired state was written elsewhere. `kind` is shown by the
    broker."""

    def __init__(self, url: str, heard: Callable[[], None], changed: Callable[[], None], kind: str = "workers") -> None:
        self.fleet = Fleet()
        self.link = Link(url, new_instance(kind), self._opened, self._lost)
        self._heard = heard
        self._changed = changed
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._events: AbstractExchange | None = None
        self._own = ""
        self._since = 0
        """Monotonic ns of the first echo of this connection, 0: none came yet."""
        self._echo = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def hearing(self, now: int) -> bool:
        """Whether everybody who is alive has been heard: an echo came lately, and the first one long enough ago."""
        return bool(self._since) and now - self._since > SILENT_AFTER_NS and now - self._echo < SILENT_AFTER_NS

    async def run(self) -> None:
        echoing = asyncio.create_task(self._echo_on())
        try:
            await self.link.run()
        finally:
            echoing.cancel()
            with suppress(asyncio.CancelledError):
                await echoing

    async def close(self) -> None:
        await self.link.close()

    def announce(self) -> None:
        """Tell the others that the repository was written. Best effort: they look by themselves too."""
        task = asyncio.create_task(self._publish_changed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def waiting(self, model: str, version: int) -> int:
        """Messages in a version's queues that no replica has taken. Raises Unavailable where the broker is away."""
        return sum(await self._each(_queues(model, version), _count))

    async def delete_queues(self, model: str, version: int) -> None:
        """What is gone is fine. Raises Unavailable where the broker is away."""
        await self._each(_queues(model, version), _delete)

    async def _each(self, names: Sequence[str], act: Callable[[AbstractConnection, str], Any]) -> list[int]:
        connection = self._connection
        if connection is None or not self.link.up:
            raise Unavailable("the broker is away")
        try:
            async with asyncio.timeout(ANSWER_S):
                return [await act(connection, name) for name in names]
        except BROKEN as error:
            raise Unavailable("the broker is away") from error

    # --- the connection -------------------------------------------------------------------------------------------

    async def _opened(self, connection: AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=False)
        self._events, _ = await exchanges(channel)
        queue = await channel.declare_queue(exclusive=True, arguments=dict(EARS_ARGUMENTS))
        await queue.bind(BEATS, "#")
        await queue.bind(EVENTS, CHANGED)
        await queue.consume(self._received, no_ack=True)
        self._own, self._channel, self._connection = queue.name, channel, connection

    def _lost(self) -> None:
        self._channel = self._events = self._connection = None
        self._since = 0

    async def _received(self, message: AbstractIncomingMessage) -> None:
        self.link.heard()
        now = time.monotonic_ns()
        if not message.exchange:
            self._echo = now
            self._since = self._since or now
        elif message.exchange == EVENTS:
            self._changed()
        else:
            self._take_beat(message.body, now)

    def _take_beat(self, body: bytes, now: int) -> None:
        try:
            self.fleet.hear(beats.decode(body), now)
        except ValueError as error:
            log.warning("a beat cannot be read", error=str(error)[:200])
            return
        self._heard()

    async def _echo_on(self) -> None:
        while True:
            self.fleet.forget(time.monotonic_ns())
            channel = self._channel
            if channel is not None and self.link.usable:
                with suppress(*BROKEN):
                    await channel.default_exchange.publish(aio_pika.Message(b""), self._own, mandatory=False)
            await asyncio.sleep(ECHO_S)

    async def _publish_changed(self) -> None:
        if self._events is not None and self.link.usable:
            with suppress(*BROKEN):
                await self._events.publish(aio_pika.Message(b""), CHANGED, mandatory=False)


def _queues(model: str, version: int) -> tuple[str, str]:
    return infer_queue(model, version), suspect_queue(model, version)


async def _count(connection: AbstractConnection, name: str) -> int:
    """Of a queue that is not there: 0. Asking for it closes the channel, so each question has its own."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        queue = await channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return 0
    finally:
        await channel.close()


async def _delete(connection: AbstractConnection, name: str) -> int:
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.queue_delete(name)
    finally:
        await channel.close()
    return 0
