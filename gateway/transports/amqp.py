"""RabbitMQ: batches to the queue that all replicas of a version share, replies to the gateway's own.

No task per batch: it is published where it is sent and answered where its reply is read (`amqp_wire.py`). What was
lost, refused or forgotten on the way is found by looking at every flight four times a second (`amqp_flight.py` says
what to do), so that each batch has an answer. Replies are trusted no more than a child's: what cannot be read, or is
not what the batch and the signature allow, becomes an error of the callers that it was for.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from math import ceil

import msgspec
import structlog

from core.errors import (
    DeadlineExceeded,
    Internal,
    NotReady,
    PenstockError,
    QueueFull,
    TooLarge,
    Unavailable,
    WorkerLost,
    new_error_id,
)
from core.express import Delivered
from core.fleet import Fleet
from core.settings import Settings
from core.topology import FINAL, MEMBER, cancel_key, infer_queue
from gateway.batching.outlook import PER_REPLICA
from gateway.transports import amqp_flight as flights
from gateway.transports.amqp_flight import Flight, Patience, RetryBudget
from gateway.transports.amqp_line import Line
from gateway.transports.amqp_parts import Join, cut, fits
from gateway.transports.amqp_wire import CONFIRMED, UNROUTABLE
from gateway.transports.base import UNSERVED, Done, Sample
from gateway.transports.conformity import Conformity, check_times
from repository.records import Version
from workers.messages import Batch, Cancel, Failure, Reply, Timing, decode, encode, failure_of, frame_length

log = structlog.get_logger(__name__)

MILLISECOND = 1_000_000
GATHER_S = 0.01
"""Cancellations wait this long for others, to go as one message."""

_LOST = failure_of(WorkerLost("the request was lost on its way to a worker"))
_AWAY = failure_of(Unavailable("the workers take no requests at the moment"))
_EXPIRED = failure_of(DeadlineExceeded("the deadline passed before an answer"))
_FULL = failure_of(QueueFull("the model's queue is full"))
_VERDICTS = {flights.EXPIRED: _EXPIRED, flights.LOST: _LOST, flights.BLOCKED: _AWAY}


class Amqp:
    """The way to the replicas of one version. `fleet` knows who is alive; `look` is to be called now and then."""

    def __init__(self, version: Version, line: Line, fleet: Fleet, settings: Settings) -> None:
        self.version = version
        self.replicas = 0
        """Ready ones, as far as they are heard; other gateways send to them too."""
        self.gateways = 1
        self.samples: list[Sample] = []
        self._line = line
        self._fleet = fleet
        self._drain = settings.drain_timeout_s
        self._longest = settings.max_deadline_ms * MILLISECOND
        self._max_message = settings.max_message_bytes
        what = f"a request to this server brings at most {self._max_message} bytes of tensors"
        self._too_large = failure_of(TooLarge(what))
        self._queue = infer_queue(version.model, version.version)
        self._conformity = Conformity(version)
        self._share = 0
        """Batches that this gateway may have in flight."""
        self._overdue = 0
        self._flights: dict[int, Flight] = {}
        """By number."""
        self._patience = Patience()
        self._retries = RetryBudget()
        self._gone: list[tuple[str, int, list[int]]] = []
        self._closing = False
        self.closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self.count(time.monotonic_ns())

    def __repr__(self) -> str:
        return f"<Amqp {self.version.key}, window {self.window}, {len(self._flights)} in flight>"

    @property
    def window(self) -> int:
        """This gateway's share of what all may have in flight. Batches that hang do not count."""
        if self._closing or not self._share or not self._line.usable:
            return 0
        return self._share + self._overdue

    @property
    def away(self) -> PenstockError | None:
        """Why nothing can be served now: to be told to new callers at once."""
        if self._line.away is not None or self.replicas:
            return self._line.away
        return NotReady(f"no worker of {self.version.key} is ready", retry_after=1.0)

    @property
    def flights(self) -> list[Flight]:
        """What is in flight now."""
        return list(self._flights.values())

    def send(self, batch: Batch, done: Done) -> None:
        if fits(batch, self._max_message):
            self._send(batch, done, 0)
            return
        join = Join(batch, done)
        for first, part in cut(batch, self._max_message):
            self._send(part, join.part(first), first)

    def _send(self, batch: Batch, done: Done, first: int) -> None:
        now = time.monotonic_ns()
        latest = max(member.deadline or now + self._longest for member in batch.members)
        number = self._line.enlist(lambda number: partial(self._received, number))
        flight = self._flights[number] = Flight(batch, done, number, first, now, latest)
        self._idle.clear()
        if self._closing:
            self._loop.call_soon(self._fail, flight, _LOST)
        else:
            self._retries.earn()
            self._post(flight, now)

    def cancel(self, cancel: Cancel) -> None:
        for number, flight in self._flights.items():
            if flight.batch.id == cancel.id and (members := flight.own(cancel.members)):
                if not self._gone:
                    self._loop.call_later(GATHER_S, self._tell_gone)
                self._gone.append((self._line.instance, number, members))

    async def close(self) -> None:
        self._closing = True
        try:
            await asyncio.wait_for(self._idle.wait(), self._drain)
        except TimeoutError:
            log.warning("replicas cut off", model=self.version.key, batches=len(self._flights))
        finally:
            for flight in self.flights:
                self._fail(flight, _LOST)
            self.closed = True

    # --- told by the hub ------------------------------------------------------------------------------------------

    def count(self, now: int) -> None:
        """Beats may have changed who is there."""
        ready = self._fleet.ready(self.version.model, self.version.version, now)
        self.replicas = len(ready)
        self.gateways = max(1, len(self._fleet.gateways(now)))
        self._share = ceil(PER_REPLICA * len(ready) / self.gateways)
        if not self.samples:
            self.samples = next(([Sample(*run) for run in beat.warmup] for beat in ready if beat.warmup), [])
            self._patience.seed(self.samples)

    def look(self, now: int) -> None:
        """Do what time has made necessary. Who is silent is taken for hung only if the broker is heard meanwhile."""
        limit, usual = self._patience.limit, self._patience.usual
        for flight in self.flights:
            advice = flight.advice(now, limit, usual, self._line.blocked)
            if advice == flights.AGAIN and self._line.heard < flight.heard + limit:
                self._line.probe()
            else:
                self._follow(flight, advice, now)
        self._overdue = sum(flight.overdue(now, limit) for flight in self._flights.values())

    def connected(self, now: int) -> None:
        """A new wire is up: what waited for it goes."""
        for flight in self.flights:
            if flight.waiting:
                self._post(flight, now)

    def lost(self, now: int, refused: bool) -> None:
        """The wire is gone, and with it the replies to all that went over it. `refused`: by the broker, for something
        that it was sent: none of what it had not confirmed is sent again."""
        for flight in self.flights:
            blamed = refused and not flight.confirmed
            if not flight.waiting and (blamed or not self._repeat(flight, now)):
                self._fail(flight, _LOST)

    def _follow(self, flight: Flight, advice: str, now: int) -> None:
        if advice in _VERDICTS:
            self._fail(flight, _VERDICTS[advice])
        elif advice == flights.AGAIN:
            if self._line.usable and self._repeat(flight, now):
                log.warning("batch sent again", model=self.version.key, batch=flight.number)
                self._post(flight, now)
        elif advice == flights.POST and self._line.usable:
            self._post(flight, now)

    def _repeat(self, flight: Flight, now: int) -> bool:
        """Let it wait to be posted a second time, if that makes sense and the budget has room."""
        if not flight.may_repeat(now, self._patience.usual) or not self._retries.spend():
            return False
        flight.again = True
        flight.wait(now)
        return True

    # --- out ------------------------------------------------------------------------------------------------------

    def _post(self, flight: Flight, now: int) -> None:
        batch, wire = flight.batch, self._line.wire
        ttl = -(-(flight.latest - now) // MILLISECOND)
        if wire is None:
            return
        if ttl <= 0:
            self._loop.call_soon(self._fail, flight, _EXPIRED)
            return
        frame = encode(Batch(flight.number, batch.batched, batch.members, batch.inputs, batch.parameters))
        if frame_length(frame[0]) > self._max_message:
            self._loop.call_soon(self._fail, flight, self._too_large)
            return
        flight.put(now)
        wire.post(self._queue, flight.number, ttl, frame, partial(self._settled, flight), batch.context)

    def _settled(self, flight: Flight, outcome: str) -> None:
        """What the broker says of a publish."""
        if outcome == CONFIRMED:
            flight.confirmed = True
            flight.published = time.monotonic_ns()
        elif flight.over:
            return
        elif outcome != UNROUTABLE:
            self._fail(flight, _FULL)
        elif flight.unrouted:
            self._fail(flight, UNSERVED)
        else:
            self._line.outdated()
            flight.unrouted = True
            flight.wait(time.monotonic_ns())

    def _tell_gone(self) -> None:
        gone, self._gone = self._gone, []
        self._line.event(cancel_key(self.version.model, self.version.version), msgspec.msgpack.encode(gone))

    # --- in -------------------------------------------------------------------------------------------------------

    def _received(self, number: int, message: Delivered) -> None:
        flight = self._flights.get(number)
        if flight is None:
            return
        now = time.monotonic_ns()
        headers = message.properties.headers
        member = headers.get(MEMBER)
        if member is None and not message.body and headers.get(FINAL) is False:
            flight.split, flight.heard = True, now
            return
        timing = Timing()
        try:
            timing = self._read(flight, member, message.body, now)
        except ValueError as error:
            self._nonsense(flight, member, error, now)
        if not flight.missing:
            if not flight.again:
                self._patience.observe(now - flight.posted)
            self._answer(flight, timing, now)

    def _read(self, flight: Flight, member: object, body: bytes, now: int) -> Timing:
        """Put the results of a reply into its flight. Raises ValueError for one that is not as it must be."""
        reply = decode(body)
        if not isinstance(reply, Reply):
            raise ValueError("a worker only replies")
        check_times(reply.timing, now - flight.sent)
        reply.timing.published = flight.published or flight.posted
        if not flight.sent <= reply.timing.started <= now:
            reply.timing.started = 0
        if member is None:
            self._conformity.check(flight.batch, reply)
            flight.whole(reply.results)
        else:
            at = member_of(flight.batch, member)
            alone = Batch(0, flight.batch.batched, [flight.batch.members[at]], [])
            self._conformity.check(alone, reply)
            flight.part(at, reply.results[0], now)
        return reply.timing

    def _nonsense(self, flight: Flight, member: object, error: ValueError, now: int) -> None:
        error_id = new_error_id()
        log.error("worker spoke nonsense", model=self.version.key, error_id=error_id, error=str(error)[:200])
        failure = failure_of(Internal("the request failed inside the server", error_id=error_id))
        try:
            flight.part(member_of(flight.batch, member), failure, now)
        except ValueError:
            flight.fail(failure)

    # --- the end of a flight --------------------------------------------------------------------------------------

    def _fail(self, flight: Flight, failure: Failure) -> None:
        if not flight.over:
            flight.fail(failure)
            self._answer(flight, Timing(), time.monotonic_ns())

    def _answer(self, flight: Flight, timing: Timing, now: int) -> None:
        flight.over = True
        del self._flights[flight.number]
        self._line.dismiss(flight.number)
        if not self._flights:
            self._idle.set()
        flight.done(flight.reply(timing, now))


def member_of(batch: Batch, member: object) -> int:
    """The member that a header names. Raises ValueError for one that the batch does not have."""
    if type(member) is not int or not 0 <= member < len(batch.members):
        raise ValueError("a reply to no member of its batch")
    return member
