"""One connection to the broker, set up for one version: what a replica reads there and how it writes.

Every call raises ConnectionError when the connection ends meanwhile: what was not acknowledged comes again, through the
next one.

Two channels. Over one go deliveries, their replies and acknowledgements, and beats: without confirms, since a reply
that does not arrive is asked for again. Over the other go the messages that must not be lost once the one that they
replace is acknowledged: suspects and poison records, with confirms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import aiormq
from aio_pika.abc import AbstractConnection
from pamqp.commands import Basic

from core.broker import exchanges
from core.topology import (
    BEATS,
    EARS_ARGUMENTS,
    EVENTS,
    GATEWAY,
    INFER_ARGUMENTS,
    POISON,
    POISON_ARGUMENTS,
    cancel_key,
    infer_queue,
    replica_key,
    suspect_queue,
)
from workers.intake import Intake, Take
from workers.outlet import Outlet


@contextmanager
def lasting() -> Iterator[None]:
    """The library says in many ways that a connection has ended, by a cancellation among others: here in one."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the connection to the broker ended") from error
    except Exception as error:
        raise ConnectionError("the connection to the broker ended") from error


class Channels:
    """`consuming`: the prefetch that messages are taken with, 0 while none are."""

    outlet: Outlet

    def __init__(self, model: str, version: int) -> None:
        self.consuming = 0
        self._infer, self._suspect = infer_queue(model, version), suspect_queue(model, version)
        self._keys = ((BEATS, GATEWAY), (BEATS, replica_key(model, version)), (EVENTS, cancel_key(model, version)))
        self._tags: list[str] = []
        self._dropping: asyncio.Task[None] | None = None

    async def open(self, connection: AbstractConnection, heard: Take) -> None:
        """Declare what must be there; beats of gateways and of this version, and its cancellations, go to `heard`."""
        self._connection = connection
        with lasting():
            await self._set_up(connection, heard)

    async def _set_up(self, connection: AbstractConnection, heard: Take) -> None:
        channel = self._channel = await connection.channel(publisher_confirms=True)
        await exchanges(channel)
        for queue in (self._infer, self._suspect):
            await channel.declare_queue(queue, durable=True, arguments=dict(INFER_ARGUMENTS))
        await channel.declare_queue(POISON, durable=True, arguments=dict(POISON_ARGUMENTS))
        ears = await channel.declare_queue(exclusive=True, auto_delete=True, arguments=dict(EARS_ARGUMENTS))
        self._sure = await channel.get_underlay_channel()
        self._intake = await Intake.opened(self._sure.connection)
        self.outlet = Outlet(self._intake)
        for exchange, key in self._keys:
            await self._intake.queue_bind(ears.name, exchange, key)
        channel.close_callbacks.add(self._drop)
        self._intake.closing.add_done_callback(self._drop)
        self._intake.on_consumer_cancel_callbacks.add(self._drop)
        await self._intake.take_from(ears.name, heard, no_ack=True)

    async def consume(self, prefetch: int, batch: Take, suspect: Take) -> None:
        """Take messages, `prefetch` at a time and suspects one by one; 0: no more.

        A prefetch is fixed when consuming starts, so the new consumer begins before the old one ends: what the old one
        was sent until then still comes.
        """
        if prefetch == self.consuming:
            return
        tags, self._tags = self._tags, []
        self.consuming = prefetch
        with lasting():
            if prefetch:
                first = await self._consume(self._infer, prefetch, batch)
                self._tags = [first, tags.pop() if tags else await self._consume(self._suspect, 1, suspect)]
            for tag in tags:
                await self._intake.leave(tag)

    async def publish_surely(self, queue: str, body: bytes, properties: Basic.Properties) -> bool:
        """Whether the broker has taken the message."""
        with lasting():
            try:
                await self._sure.basic_publish(body, routing_key=queue, properties=properties, mandatory=True)
            except aiormq.exceptions.DeliveryError:
                return False
        return True

    async def flush(self) -> None:
        """Return when the broker has handled everything that was sent through the outlet."""
        with lasting():
            await self.outlet.written()
            await self._intake.basic_qos(prefetch_count=1)

    async def _consume(self, queue: str, prefetch: int, take: Take) -> str:
        await self._intake.basic_qos(prefetch_count=prefetch)
        return await self._intake.take_from(queue, take)

    def _drop(self, *_: object) -> None:
        """A channel that ends, or a consumer that the broker ends (its queue is gone), takes the connection with it:
        the next one sets up all afresh."""
        if self._dropping is None and not self._connection.is_closed:
            self._dropping = asyncio.create_task(self._connection.close())
