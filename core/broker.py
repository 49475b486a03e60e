"""A connection to the broker that comes back: what gateways, replicas, the reconciler and the control plane share.

aio-pika's plain connection, never its robust one: that restores names which the broker may hold locked for long, and
does not send again what was lost. Here each connection is set up afresh by `on_open`, and `on_lost` says that
everything made by it is gone. One message that cannot be read does not end it (`core/tolerant.py`).

    connect ─► on_open ─► up ─► lost ─► on_lost ─► wait (full jitter, doubling) ─► connect …

A peer that is there but says nothing is found by silence: the library's own heartbeat takes three of them, so whoever
hears beats through this connection calls `heard`, and after `SILENCE_S` without one the connection is cut; but not
while the broker blocks it, since then nobody's beats come.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange

from core import tolerant
from core.topology import BEATS, EVENTS

log = structlog.get_logger(__name__)

HEARTBEAT_S = 5
SILENCE_S = 6.0
CONNECT_S = 5.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
LOOK_S = 0.1

OnOpen = Callable[[AbstractConnection], Awaitable[None]]
OnLost = Callable[[], None]


class Link:
    """`up`: set up and not lost. `blocked`: the broker takes no publish now (memory or disk alarm)."""

    def __init__(self, url: str, name: str, on_open: OnOpen, on_lost: OnLost, listens: bool = True) -> None:
        """`name` is shown by the broker. `listens`: beats come through here, so silence means that it is dead."""
        self.up = False
        self.blocked = False
        self._url = url
        self._name = name
        self._on_open = on_open
        self._on_lost = on_lost
        self._listens = listens
        self._heard = 0.0
        self._connection: AbstractConnection | None = None
        self._closing = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Link {self._name}, {'blocked' if self.blocked else 'up' if self.up else 'down'}>"

    @property
    def usable(self) -> bool:
        """Whether what is published now may be expected to arrive."""
        return self.up and not self.blocked

    def heard(self) -> None:
        """Something came from the broker."""
        self._heard = time.monotonic()

    async def until_up(self, timeout: float) -> bool:
        """Wait for the connection; False when it is not there in `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.up:
                    changed = self._changed
                    await changed.wait()
        return self.up

    async def run(self) -> None:
        """Connect, and connect again, until cancelled or closed."""
        wait = FIRST_WAIT_S
        while not self._closing:
            begun = time.monotonic()
            await self._once()
            if time.monotonic() - begun > LONGEST_WAIT_S:
                wait = FIRST_WAIT_S
            if not self._closing:
                await asyncio.sleep(random.uniform(0, wait))  # noqa: S311 - spreads reconnects, hides nothing
                wait = min(2 * wait, LONGEST_WAIT_S)

    async def close(self) -> None:
        """Say goodbye to the broker. `run` ends."""
        self._closing = True
        if self._connection is not None:
            with suppress(Exception):
                async with asyncio.timeout(CONNECT_S):
                    await self._connection.close()

    async def _once(self) -> None:
        """One connection from its making to its loss; only logs why it ended.

        Where a peer hangs up on it the library lets out what happened inside it, StopAsyncIteration and its own
        cancellations among them: whatever it is, there is no broker then.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await aio_pika.connect(
                    self._url,
                    connection_class=tolerant.Connection,
                    heartbeat=HEARTBEAT_S,
                    client_properties={"connection_name": self._name},
                )
        except (Exception, asyncio.CancelledError) as error:
            _heed_cancellation()
            log.warning("broker away", name=self._name, error=type(error).__name__)
            return
        self._connection = connection
        lost = asyncio.Event()
        connection.close_callbacks.add(lambda *_: lost.set())
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._on_open(connection)
            self._set_up(True)
            log.info("broker connected", name=self._name)
            await self._watch(connection, lost)
        except (Exception, asyncio.CancelledError) as error:
            _heed_cancellation()
            log.warning("broker not usable", name=self._name, error=repr(error)[:200])
        finally:
            self._set_up(False)
            self._on_lost()
            self._connection = None
            await _drop(connection)

    async def _watch(self, connection: AbstractConnection, lost: asyncio.Event) -> None:
        self.heard()
        while not lost.is_set() and not self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await lost.wait()
            self._look(connection)
            if self.blocked:
                self.heard()
            if self._listens and time.monotonic() - self._heard > SILENCE_S:
                log.warning("broker silent", name=self._name)
                return
        if not self._closing:
            log.warning("broker lost", name=self._name)

    def _look(self, connection: AbstractConnection) -> None:
        blocked = not _is_ready(connection)
        if blocked != self.blocked and not connection.is_closed and not self._closing:
            log.warning("broker blocks" if blocked else "broker takes publishes again", name=self._name)
            self.blocked = blocked

    def _set_up(self, up: bool) -> None:
        self.up = up
        self.blocked = False
        self._changed.set()
        self._changed = asyncio.Event()


async def exchanges(channel: AbstractChannel) -> tuple[AbstractExchange, AbstractExchange]:
    """`events` and `beats`: topic exchanges, durable, made by whoever comes first."""
    events = await channel.declare_exchange(EVENTS, aio_pika.ExchangeType.TOPIC, durable=True)
    beats = await channel.declare_exchange(BEATS, aio_pika.ExchangeType.TOPIC, durable=True)
    return events, beats


def _heed_cancellation() -> None:
    """Called where CancelledError was caught: raise it where somebody did cancel this task."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise asyncio.CancelledError


def _is_ready(connection: AbstractConnection) -> bool:
    """Whether the library's `ready()` would return at once: it waits while the broker has blocked the connection."""
    if connection.transport is None:
        return False
    waiting = connection.transport.connection.ready()
    try:
        waiting.send(None)
    except StopIteration:
        return True
    waiting.close()
    return False


async def _drop(connection: AbstractConnection) -> None:
    """Close, without waiting for a peer that does not answer."""
    with suppress(Exception):
        async with asyncio.timeout(1.0):
            await connection.close()
