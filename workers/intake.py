"""A channel whose deliveries go to whoever takes them from that queue."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from aiormq.abc import AbstractConnection

from core.express import Delivered, Express, unheard

Take = Callable[[Delivered], None]


class Intake(Express):
    """No confirms."""

    def __init__(self, connection: AbstractConnection, number: int) -> None:
        super().__init__(connection, number, confirms=False)
        self._takes: dict[str, Take] = {}

    async def take_from(self, queue: str, take: Take, no_ack: bool = False) -> str:
        """Have each message of a queue handed to `take`; returns the consumer's tag, for `leave`."""
        tag = secrets.token_hex(8)
        self._takes[tag] = take
        await self.basic_consume(queue, unheard, consumer_tag=tag, no_ack=no_ack)
        return tag

    async def leave(self, tag: str) -> None:
        """Take no more; what was on its way has been handed over when this returns."""
        await self.basic_cancel(tag)
        del self._takes[tag]

    def delivered(self, message: Delivered) -> None:
        take = self._takes.get(message.consumer_tag)
        if take is not None:
            take(message)
