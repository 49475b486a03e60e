"""Feeds one version's queues at the broker to an endpoint, and says each second how it stands.

    STARTING ──serve──► READY ──drain──► DRAINING        say(FAILED, why) from anywhere

It is there from the first moment of a replica's process: its beats tell that it starts, and why it failed. Batches are
taken once there is an endpoint that takes them, and while there is one: not while the child process of a model that
brings code is away.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import structlog
from aio_pika.abc import AbstractConnection

from core import beats
from core.beats import DRAINING, LONGEST_NAME, LONGEST_TEXT, READY, STARTING, ReplicaBeat
from core.broker import Link
from core.express import Delivered
from core.fleet import Fleet
from core.topology import BEATS, EVENTS, GATEWAY, replica_key
from repository.records import Version
from workers.channels import Channels
from workers.endpoint import Endpoint
from workers.feed import Feed
from workers.messages import Member
from workers.pulse import Second
from workers.recorder import Recorder

log = structlog.get_logger(__name__)

BEAT_S = 1.0
AWAY = "its process is being started again"
_signatures = msgspec.msgpack.Encoder()


class Consumer:
    """`instance`: the name of this replica for its life; `device`: what its model runs on, for people. `recorder`: told
    of what ran."""

    def __init__(
        self, url: str, instance: str, version: Version, device: str = "cpu", recorder: Recorder | None = None
    ) -> None:
        self.fleet = Fleet()
        """The gateways that are heard."""
        self._instance = instance
        self._version = version
        self._device = device
        self._recorder = recorder
        self._host = socket.gethostname()
        self._state, self._reason, self._note = STARTING, "", ""
        self._endpoint: Endpoint | None = None
        self._numbers = itertools.count(1)
        self._channels: Channels | None = None
        self._feed: Feed | None = None
        self._poke = asyncio.Event()
        self._attending = asyncio.Lock()
        self._link = Link(url, instance, self._opened, self._lost)

    def __repr__(self) -> str:
        return f"<Consumer {self._version.key} {self._state}, {self._link!r}, {self.in_flight} in flight>"

    @property
    def in_flight(self) -> int:
        """Batches taken from the broker and not answered."""
        return self._feed.in_flight if self._feed is not None else 0

    @property
    def consuming(self) -> bool:
        """Whether more may come."""
        return self._channels is not None and self._channels.consuming > 0

    def say(self, state: str, reason: str = "") -> None:
        """What the beats say from now on: STARTING or FAILED, and why, for people."""
        self._state, self._reason = state, reason
        self._poke.set()

    def serve(self, endpoint: Endpoint, note: str = "") -> None:
        """Take batches for `endpoint`, whose version and samples are what its load found; `note`: for the pusher."""
        self._endpoint, self._note = endpoint, note
        self._version = endpoint.version
        endpoint.watch(self._endpoint_changed)
        self.say(READY)

    async def run(self) -> None:
        """Stay connected, beat and serve, until drained or cancelled."""
        beating = asyncio.create_task(self._beat_on())
        try:
            await self._link.run()
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    async def drain(self, patience_s: float) -> None:
        """Say DRAINING, take no more, answer what was taken, leave the broker; `run` ends.

        What is not answered in `patience_s` seconds goes back to the broker, for another replica.
        """
        self._state = DRAINING
        try:
            async with asyncio.timeout(patience_s):
                await self._attend()
                if self._feed is not None:
                    await self._feed.finish()
        except TimeoutError:
            log.warning("replica cut off", model=self._version.key, consumer=repr(self))
        except ConnectionError:
            log.warning("broker lost while draining", model=self._version.key)
        await self._link.close()

    async def blame(self, members: Sequence[Member]) -> None:
        """The model hangs on these, and this process ends now: keep a record where the culprit is certain and would be
        seen no more. Raises ConnectionError."""
        if self._feed is not None:
            await self._feed.blame(members)

    # --- told by the link and the endpoint ------------------------------------------------------------------------

    async def _opened(self, connection: AbstractConnection) -> None:
        channels = Channels(self._version.model, self._version.version)
        await channels.open(connection, self._heard)
        self._channels = channels
        self._poke.set()

    def _lost(self) -> None:
        feed, self._feed, self._channels = self._feed, None, None
        if feed is not None:
            feed.lost()

    def _endpoint_changed(self) -> None:
        if self._feed is not None:
            self._feed.pump()
        self._poke.set()

    def _heard(self, message: Delivered) -> None:
        """A beat, of a gateway or of this version's replicas, or cancellations."""
        self._link.heard()
        try:
            if message.routing_key == GATEWAY:
                self.fleet.hear(beats.decode(message.body), time.monotonic_ns())
            elif message.exchange == EVENTS and self._feed is not None:
                self._feed.cancel(message.body)
        except ValueError as error:
            log.warning("neither beat nor cancellation", exchange=message.exchange, error=str(error)[:200])

    # --- each second ----------------------------------------------------------------------------------------------

    async def _beat_on(self) -> None:
        while True:
            self._poke.clear()
            try:
                await self._attend()
            except ConnectionError:
                log.info("connection ended in between", model=self._version.key)
            self.fleet.forget(time.monotonic_ns())
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._poke.wait()

    async def _attend(self) -> None:
        """Take as many messages as is right now, and beat: before taking fewer, after taking more."""
        async with self._attending:
            channels = self._channels
            if channels is None:
                return
            if self._feed is None and self._endpoint is not None:
                self._feed = Feed(channels, self._endpoint, self.fleet, self._numbers, self._recorder)
            prefetch = self._prefetch()
            if not prefetch:
                self._beat(channels)
            if self._feed is not None:
                await self._feed.consume(prefetch)
            if prefetch:
                self._beat(channels)

    def _prefetch(self) -> int:
        if self._feed is None or self._standing()[0] != READY:
            return 0
        return self._feed.prefetch.decide(time.monotonic_ns())

    def _standing(self) -> tuple[str, str]:
        """State and reason as they are now."""
        if self._state == READY and self._endpoint is not None and not self._endpoint.ready:
            return STARTING, AWAY
        return self._state, self._reason

    def _beat(self, channels: Channels) -> None:
        outlet, version = channels.outlet, self._version
        body = beats.encode(self._describe(time.monotonic_ns()))
        outlet.send(outlet.event(BEATS, replica_key(version.model, version.version), body))

    def _describe(self, now: int) -> ReplicaBeat:
        version, endpoint, feed = self._version, self._endpoint, self._feed
        state, reason = self._standing()
        second = feed.pulse.take(now) if feed is not None else Second(0, 0.0, [])
        return ReplicaBeat(
            sender=self._instance,
            boot=beats.boot_id(),
            sent=now,
            host=self._host,
            pid=os.getpid(),
            model=version.model,
            version=version.version,
            attempt=version.attempt,
            state=state,
            reason=reason[:LONGEST_TEXT],
            note=self._note[:LONGEST_TEXT],
            signature=_signatures.encode(version.signature) if endpoint is not None else b"",
            max_batch=version.max_batch,
            device=self._device[:LONGEST_NAME],
            in_flight=self.in_flight,
            queue_wait=second.queue_wait,
            busy=second.busy,
            warmup=[(rows, seconds) for rows, seconds in endpoint.samples] if endpoint is not None else [],
            samples=second.samples,
        )
