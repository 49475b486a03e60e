"""A channel whose deliveries are plain calls, where they are read: the library makes a task for each."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import structlog
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

log = structlog.get_logger(__name__)

Take = Callable[[DeliveredMessage], None]


class Intake(Channel):
    """No confirms. A failure of `Take` is logged: it must not end the channel."""

    def __init__(self, connection: AbstractConnection, number: int) -> None:
        super().__init__(connection, number, publisher_confirms=False)
        self._takes: dict[str, Take] = {}

    @classmethod
    async def on(cls, connection: AbstractConnection) -> Intake:
        """A channel of its own of an open connection."""
        number = max(connection.channels, default=0) + 1
        intake = cls(connection, number)
        connection.channels[number] = intake
        await intake.open()
        return intake

    async def take(self, queue: str, take: Take, no_ack: bool = False) -> str:
        """Have each message of a queue handed to `take`; returns the consumer's tag, for `leave`."""
        tag = secrets.token_hex(8)
        self._takes[tag] = take
        await self.basic_consume(queue, _unheard, consumer_tag=tag, no_ack=no_ack)
        return tag

    async def leave(self, tag: str) -> None:
        """Take no more; what was on its way has been handed over when this returns."""
        await self.basic_cancel(tag)
        del self._takes[tag]

    async def _on_deliver_frame(self, frame: Basic.Deliver) -> None:
        message = await self._read_content(frame, await self._get_frame())  # type: ignore[arg-type]
        take = self._takes.get(frame.consumer_tag or "")
        if take is None:
            return
        try:
            take(message)
        except Exception:
            log.exception("a delivery could not be handled")


async def _unheard(message: DeliveredMessage) -> None:
    """Deliveries do not come this way: see `_on_deliver_frame`."""
