"""One gateway process at the broker: one connection for batches and replies, beats out and in, events out and in.

on a connection     two channels: the wire (batches out with confirms, replies in), and one at its side for beats
                    and events, which may be lost
each second         its beat goes out
four times a second who is ready and alive is counted, every flight is looked at, listeners hear of changes
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.abc import AbstractChannel as Below
from aiormq.exceptions import AMQPChannelError

from core import beats
from core.beats import GatewayBeat
from core.broker import Link, exchanges
from core.errors import PenstockError
from core.fleet import Fleet
from core.settings import Settings
from core.topology import BEATS, BOOT, CHANGED, EARS_ARGUMENTS, EVENTS, GATEWAY, INSTANCE, reply_queue
from gateway.transports.amqp import Amqp
from gateway.transports.amqp_line import Line
from gateway.transports.amqp_wire import Wire
from repository.records import Version

log = structlog.get_logger(__name__)

BEAT_S = 1.0
LOOK_S = 0.25


class Hub:
    """`describe` gives the beat to send now; `changed` is called when desired state was written elsewhere, as others
    say or as a queue that is gone lets guess."""

    def __init__(
        self,
        url: str,
        instance: str,
        describe: Callable[[], GatewayBeat],
        changed: Callable[[], None],
        settings: Settings,
    ) -> None:
        self.fleet = Fleet()
        self.link = Link(url, instance, self._opened, self._lost)
        self.line = Line(instance, self.link, self.beat, changed)
        self.transports: list[Amqp] = []
        """Those not closed yet."""
        self._describe = describe
        self._changed = changed
        self._settings = settings
        self._listeners: list[Callable[[], None]] = []
        self._refused = False
        """Whether the broker closed a channel, and the connection is being closed for it."""
        self._closing = False
        self._cutting: asyncio.Future[None] | None = None
        self._told: object = None
        """What listeners know of."""

    def __repr__(self) -> str:
        return f"<Hub {self.link!r}, {len(self.transports)} versions>"

    @property
    def away(self) -> PenstockError | None:
        """Why no worker can be reached now; None where they can."""
        return self.line.away

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` when beats, or their absence, changed who is ready or alive: at most each 250 ms."""
        self._listeners.append(listener)

    def transport(self, version: Version) -> Amqp:
        """The way to the replicas of a version; the hub looks after it until it is closed."""
        transport = Amqp(version, self.line, self.fleet, self._settings)
        self.transports.append(transport)
        return transport

    async def announce(self) -> None:
        """Tell the others that desired state was written. Best effort: they look by themselves too."""
        self.line.event(CHANGED, b"")

    async def run(self) -> None:
        """Keep connected, until closed or cancelled."""
        tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._tend())]
        try:
            await self.link.run()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Say goodbye. Transports are to be closed before."""
        self._closing = True
        await self.line.close()
        await self.link.close()

    # --- the connection -------------------------------------------------------------------------------------------

    async def _opened(self, connection: AbstractConnection) -> None:
        assert connection.transport is not None
        below = connection.transport.connection
        side = await connection.channel(publisher_confirms=False)
        self.line.events, self.line.beats = await exchanges(side)
        await self._hear(side)
        wire = await Wire.opened(below, self.line.received)
        headers = {INSTANCE: self.line.instance, BOOT: beats.boot_id()}
        await wire.listen(reply_queue(self.line.instance), headers)
        self.line.wire = wire
        self._cut_with(connection, wire, await side.get_underlay_channel())
        now = time.monotonic_ns()
        for transport in self.transports:
            transport.connected(now)

    def _cut_with(self, connection: AbstractConnection, *channels: Below) -> None:
        """A channel that is closed, or a consumer that is cancelled, by the broker takes the connection with it."""

        def cut(reason: object) -> None:
            if isinstance(reason, asyncio.Future):
                reason = None if reason.cancelled() else reason.exception()
                self._refused = self._refused or isinstance(reason, AMQPChannelError)
            if not self._closing:
                log.warning("channel closed", instance=self.line.instance, reason=repr(reason)[:200])
            self._cutting = asyncio.ensure_future(connection.close())

        for channel in channels:
            channel.closing.add_done_callback(cut)
            channel.on_consumer_cancel_callbacks.add(cut)

    def _lost(self) -> None:
        had_wire, refused = self.line.wire is not None, self._refused
        self.line.let_go()
        self._refused = False
        if had_wire:
            now = time.monotonic_ns()
            for transport in self.transports:
                transport.lost(now, refused)

    # --- beats and events -----------------------------------------------------------------------------------------

    async def _hear(self, channel: AbstractChannel) -> None:
        queue = await channel.declare_queue(exclusive=True, arguments=dict(EARS_ARGUMENTS))
        await queue.bind(BEATS, "#")
        await queue.bind(EVENTS, CHANGED)
        await queue.consume(self._heard, no_ack=True)

    async def _heard(self, message: AbstractIncomingMessage) -> None:
        self.link.heard()
        now = self.line.heard = time.monotonic_ns()
        if message.exchange == EVENTS:
            self._changed()
            return
        try:
            beat = beats.decode(message.body)
        except ValueError as error:
            log.warning("a beat cannot be read", error=str(error)[:200])
            return
        self.fleet.hear(beat, now)

    async def _beat(self) -> None:
        while True:
            if await self.link.until_up(BEAT_S):
                self.beat()
                await asyncio.sleep(BEAT_S)

    def beat(self) -> None:
        """Say now how it stands, not only each second."""
        self.line.beat(GATEWAY, beats.encode(self._describe()))

    # --- four times a second --------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._look(time.monotonic_ns())
            except Exception:
                log.exception("looking after flights failed")

    def _look(self, now: int) -> None:
        self.fleet.forget(now)
        self.transports = [transport for transport in self.transports if not transport.closed]
        for transport in self.transports:
            try:
                transport.count(now)
                transport.look(now)
            except Exception:  # of one version: the others are looked after all the same
                log.exception("looking after flights failed", model=transport.version.key)
        known = self._known(now)
        if known != self._told:
            self._told = known
            for listener in self._listeners:
                listener()

    def _known(self, now: int) -> object:
        """What listeners care about: who is there, in which state, and whether it can be reached."""
        replicas = {(beat.sender, beat.state) for beat in self.fleet.replicas(now)}
        gateways = {(beat.sender, tuple((s.model, s.version) for s in beat.open)) for beat in self.fleet.gateways(now)}
        return replicas, gateways, self.link.usable
