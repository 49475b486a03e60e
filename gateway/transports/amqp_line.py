"""What the transports of all versions of one gateway share: the wire that is up now, and whose reply is whose."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractExchange
from aio_pika.exceptions import AMQPError

from core.broker import Link
from core.errors import PenstockError, Unavailable
from core.express import Delivered
from gateway.transports.amqp_wire import Wire

log = structlog.get_logger(__name__)

SAY_S = 1.0

Taker = Callable[[Delivered], None]


class Line:
    """`instance` is the gateway's. `wire`: batches and replies; `events`, `beats`: what may be lost."""

    def __init__(
        self, instance: str, link: Link, probe: Callable[[], None], outdated: Callable[[], None] = lambda: None
    ) -> None:
        """`probe`: say something that the broker sends back. `outdated`: what is routed by seems to be."""
        self.instance = instance
        self.probe = probe
        self.outdated = outdated
        self.heard = 0
        """When anything last came from the broker, in monotonic nanoseconds."""
        self.wire: Wire | None = None
        self.events: AbstractExchange | None = None
        self.beats: AbstractExchange | None = None
        self._link = link
        self._takers: dict[str, Taker] = {}
        """By correlation id."""
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Line of {self.instance}, {self._link!r}, {self.aloft} aloft>"

    @property
    def usable(self) -> bool:
        return self.wire is not None and self._link.usable

    @property
    def blocked(self) -> bool:
        return self._link.blocked

    @property
    def away(self) -> PenstockError | None:
        """Why nothing can be sent to any worker now; None where it can."""
        if self._link.blocked:
            return Unavailable("the workers take no requests at the moment")
        if not self.usable:
            return Unavailable("the workers cannot be reached at the moment")
        return None

    @property
    def aloft(self) -> int:
        """Batches that are waited for."""
        return len(self._takers)

    # --- batches and replies --------------------------------------------------------------------------------------

    def enlist(self, taker: Callable[[int], Taker]) -> int:
        """A new number; the replies that carry it go to `taker(number)`."""
        number = next(self._numbers)
        self._takers[str(number)] = taker(number)
        return number

    def dismiss(self, number: int) -> None:
        """Replies to it are late from now on."""
        self._takers.pop(str(number), None)

    def received(self, message: Delivered) -> None:
        """A reply, in whatever state. One that is late, or doubled, or nobody's, is dropped."""
        self.heard = time.monotonic_ns()
        taker = self._takers.get(message.properties.correlation_id)
        if taker is not None:
            taker(message)

    # --- what may be lost -----------------------------------------------------------------------------------------

    def event(self, key: str, body: bytes) -> None:
        self._say(self.events, key, body)

    def beat(self, key: str, body: bytes) -> None:
        self._say(self.beats, key, body)

    def _say(self, exchange: AbstractExchange | None, key: str, body: bytes) -> None:
        """Publish for whoever listens, if that can be done now."""
        if exchange is not None and self._link.usable:
            task = self._loop.create_task(_publish(exchange, key, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def let_go(self) -> None:
        """The connection is gone."""
        if self.wire is not None:
            self.wire.let_go()
        self.wire = self.events = self.beats = None

    async def close(self) -> None:
        """Wait for what is being said."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)


async def _publish(exchange: AbstractExchange, key: str, body: bytes) -> None:
    with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
        message = Message(body, delivery_mode=DeliveryMode.NOT_PERSISTENT)
        await exchange.publish(message, key, mandatory=False, timeout=SAY_S)
