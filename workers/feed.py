"""Deliveries of one connection: from the broker to the endpoint, and their replies back.

    delivered ─► read ─► turns ─► endpoint ─► reply and acknowledgement, in one write
       │           └── cannot be run: poison, rejected
       └── redelivered, or lost by the endpoint: each member by itself to the suspect queue, then acknowledged

No task a message but for suspects. When the connection ends, everything that
was not acknowledged comes again, to whichever replica: what still runs here then is answered to nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

import structlog

from core.errors import Internal, TooLarge, WorkerLost, new_error_id
from core.express import Delivered
from core.fleet import Fleet
from core.topology import FINAL, MEMBER, POISON, SEQUENCE, suspect_queue
from workers import clocks, suspects
from workers.cancels import Cancels
from workers.channels import Channels
from workers.delivery import Delivery, read, sender_of
from workers.endpoint import Endpoint
from workers.messages import Cancel, Failure, Member, Reply, Timing, failure_of
from workers.outlet import table
from workers.prefetch import Prefetch
from workers.pulse import Pulse
from workers.recorder import Recorder
from workers.turns import Turns

log = structlog.get_logger(__name__)

LARGEST_REPLY = 15 << 20
"""Bytes: RabbitMQ 4 takes 16 MiB by default, and closes the channel of who sends more."""

WHOLE = table({SEQUENCE: 0, FINAL: True})
NOTICE = table({SEQUENCE: 0, FINAL: False})
"""Of an empty reply: answers come member by member, nobody need send the batch again."""
HANGS = "the model hung on this request until nobody could use an answer; its process was ended"
HEADERS = 1 << 19
"""Room for what a reply says beside its outputs."""


class Feed:
    """`numbers`: batch ids that are unique at this endpoint, whichever connection they came through. `recorder` is
    told of what ran."""

    def __init__(
        self, channels: Channels, endpoint: Endpoint, fleet: Fleet, numbers: Iterator[int], recorder: Recorder | None
    ) -> None:
        self.pulse = Pulse(time.monotonic_ns())
        self.prefetch = Prefetch(endpoint.version.max_batch)
        self.over = False
        self._channels = channels
        self._endpoint = endpoint
        self._version = endpoint.version
        self._fleet = fleet
        self._numbers = numbers
        self._recorder = recorder
        self._cancels = Cancels()
        self._turns: Turns[Delivery] = Turns()
        self._tasks: set[asyncio.Task[None]] = set()
        self._out: set[int] = set()
        self._rest = asyncio.Event()
        self._rest.set()

    @property
    def in_flight(self) -> int:
        """Batches taken and not acknowledged."""
        return len(self._out)

    async def consume(self, prefetch: int) -> None:
        """Take that many messages at a time from now on, 0: none."""
        await self._channels.consume(prefetch, self._take_batch, self._take_suspect)

    async def finish(self) -> None:
        """Return when everything taken has been answered and acknowledged, and the broker has it."""
        await self._rest.wait()
        await self._channels.flush()

    def lost(self) -> None:
        """The connection has ended: nobody waits for what is here."""
        self.over = True
        for task in self._tasks:
            task.cancel()
        self._channels.outlet.close()
        for delivery in self._cancels:
            self._endpoint.cancel(Cancel(delivery.batch.id, list(range(len(delivery.batch.members)))))
        self._rest.set()

    def cancel(self, body: bytes) -> None:
        """A message of cancellations. Raises ValueError for what is none."""
        for delivery, members in self._cancels.hear(body):
            self._leave_out(delivery, members)

    def pump(self) -> None:
        """Hand over what waits, if the endpoint takes it."""
        if self._endpoint.ready:
            self._submit(self._turns.next())

    # --- in -------------------------------------------------------------------------------------------------------

    def _take_batch(self, message: Delivered) -> None:
        self._take(message, suspect=False)

    def _take_suspect(self, message: Delivered) -> None:
        self._take(message, suspect=True)

    def _take(self, message: Delivered, suspect: bool) -> None:
        now = time.monotonic_ns()
        tag = message.delivery_tag
        self._out.add(tag)
        self._rest.clear()
        try:
            delivery = read(message, self._version, suspect)
        except ValueError as error:
            self._spawn(self._refuse(message, str(error)[:500]))
            return
        self._receive(delivery, now)
        if message.redelivered:
            self._spawn(self._isolate(delivery))
            return
        self._turns.add(delivery, suspect)
        self.pump()

    def _receive(self, delivery: Delivery, now: int) -> None:
        batch = delivery.batch
        delivery.arrived = now
        delivery.shift = clocks.shift_of(
            batch.members, delivery.gateway, delivery.boot, delivery.expiration_ms, self._fleet, now
        )
        clocks.localise(batch.members, delivery.shift)
        batch.id = next(self._numbers)
        if not delivery.attempt:
            self.prefetch.saw(batch.rows, len(delivery.body))

    def _submit(self, ready: list[Delivery]) -> None:
        for delivery in ready:
            delivery.started = time.monotonic_ns()
            gone = self._cancels.enter(delivery)
            self._endpoint.submit(delivery.batch, partial(self._answered, delivery))
            self._leave_out(delivery, gone)

    def _leave_out(self, delivery: Delivery, members: list[int]) -> None:
        if members:
            self._endpoint.cancel(Cancel(delivery.batch.id, members))

    # --- out ------------------------------------------------------------------------------------------------------

    def _answered(self, delivery: Delivery, reply: Reply) -> None:
        self._cancels.leave(delivery)
        self._turns.done()
        if self.over:
            return
        self.pulse.observe(reply.timing, delivery.started - delivery.arrived)
        if self._recorder is not None:
            self._recorder.observe(delivery, reply)
        _in_its_clock(reply.timing, delivery.shift)
        if any(isinstance(result, Failure) and result.reason == WorkerLost.reason for result in reply.results):
            self._spawn(self._isolate(delivery))
        else:
            self._answer(delivery, reply)
        self.pump()

    def _answer(self, delivery: Delivery, reply: Reply) -> None:
        reply.id = delivery.home
        if delivery.attempt:
            self._settle(delivery.tag, self._reply(delivery.reply_to, reply, delivery.member))
        elif len(reply.results) > 1 and weight(reply) > LARGEST_REPLY:
            self._settle(delivery.tag, *self._by_member(delivery, reply))
        else:
            self._settle(delivery.tag, self._reply(delivery.reply_to, reply))

    def _by_member(self, delivery: Delivery, reply: Reply) -> list[bytes]:
        """A reply too large for one message, as one for each member."""
        return [
            self._reply(delivery.reply_to, Reply(reply.id, [result], reply.timing), member)
            for member, result in enumerate(reply.results)
        ]

    def _settle(self, tag: int, *replies: bytes) -> None:
        """Send what there is to say to a message, and acknowledge it."""
        outlet = self._channels.outlet
        outlet.send(*replies, outlet.ack(tag))
        self._done(tag)

    def _done(self, tag: int) -> None:
        self._out.discard(tag)
        if not self._out:
            self._rest.set()

    def _reply(self, reply_to: str, reply: Reply, member: int | None = None) -> bytes:
        headers = WHOLE if member is None else table({SEQUENCE: 0, FINAL: True, MEMBER: member})
        return self._channels.outlet.reply(reply_to, reply.id, headers, _body(reply))

    # --- what cannot run, or was lost -----------------------------------------------------------------------------

    async def _refuse(self, message: Delivered, cause: str) -> None:
        error_id = new_error_id()
        log.error("message refused", model=self._version.key, cause=cause, error_id=error_id)
        await self._record(message.body, cause, error_id)
        sender, tag, outlet = sender_of(message), message.delivery_tag, self._channels.outlet
        if sender is not None:
            failure = failure_of(Internal("the request could not be run", error_id=error_id))
            outlet.send(self._reply(sender.reply_to, Reply(sender.home, [failure] * sender.members, Timing())))
        outlet.send(outlet.reject(tag))
        self._done(tag)

    async def _isolate(self, delivery: Delivery) -> None:
        """A process died with it aboard: each member gets a try by itself, until there have been enough."""
        if suspects.exhausted(delivery):
            failure = suspects.given_up()
            log.error("request given up", model=self._version.key, error_id=failure.error_id)
            await self._record(delivery.body, failure.message, failure.error_id)
            self._answer(delivery, Reply(delivery.home, [failure], Timing()))
            return
        log.warning("batch isolated", model=self._version.key, members=len(delivery.batch.members))
        if not delivery.attempt:
            outlet = self._channels.outlet
            outlet.send(outlet.reply(delivery.reply_to, delivery.home, NOTICE, b""))
        tries = suspects.retries(delivery, time.monotonic_ns())
        refused = await asyncio.gather(*(self._try_again(delivery, retry) for retry in tries))
        self._settle(delivery.tag, *refused)

    async def _try_again(self, delivery: Delivery, retry: suspects.Retry) -> bytes:
        """Publish one member; what there is to say to its caller if that cannot be."""
        failure = retry.refused
        if failure is None and not await self._channels.publish_surely(
            suspect_queue(self._version.model, self._version.version), retry.body, retry.properties(delivery)
        ):
            failure = suspects.CROWDED
        if failure is None:
            return b""
        return self._reply(delivery.reply_to, Reply(delivery.home, [failure], Timing()), retry.member)

    async def blame(self, members: Sequence[Member]) -> None:
        """The model hangs on these. What has time left comes again and is tried by itself; of a member that has none,
        and was alone, this is the only trace."""
        now = time.monotonic_ns()
        if len(members) != 1 or not 0 < members[0].deadline <= now:
            return
        for delivery in self._cancels:
            for at, member in enumerate(delivery.batch.members):
                if member is members[0]:
                    await self._record(suspects.alone(delivery, at), HANGS, new_error_id())

    async def _record(self, body: bytes, cause: str, error_id: str) -> None:
        record = suspects.poison(body, cause, self._version, time.time(), error_id)
        await self._channels.publish_surely(POISON, record, suspects.persistent())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except ConnectionError:
                log.info("connection ended in between", model=self._version.key)
            except Exception:
                log.exception("feeding failed", model=self._version.key)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _in_its_clock(timing: Timing, shift: int | None) -> None:
    """When it began, as its gateway's clock has it, where that is known."""
    timing.started = timing.started - shift if shift is not None and timing.started else 0


def weight(reply: Reply) -> int:
    """Bytes of its outputs."""
    return sum(
        memoryview(output.data).nbytes for result in reply.results if isinstance(result, list) for output in result
    )


def _body(reply: Reply) -> bytes:
    body = suspects.as_body(reply)
    if len(body) <= LARGEST_REPLY + HEADERS:
        return body
    failure = failure_of(
        TooLarge(f"the outputs are {weight(reply)} bytes, more than the {LARGEST_REPLY} of one message")
    )
    return suspects.as_body(Reply(reply.id, [failure] * len(reply.results), reply.timing))
