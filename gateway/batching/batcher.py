"""The asyncio shell of the batching policy: one for each open model version.

Everything happens in plain calls on the event loop's thread: `submit` and `cancel` come from the data plane, replies
from the transport, and each is answered by calls on the entries; no task, future or timer a request. A dispatch is
put off to the end of the loop's iteration, so that requests that were parsed in the same one leave together; nothing
waits longer than that. One timer stands at the earliest deadline of all that wait or are aboard: when it passes, the
caller hears so, even if the worker never answers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import structlog

from core.beats import Share
from core.errors import DeadlineExceeded, Draining, Internal, PenstockError, Unavailable, new_error_id
from core.settings import Settings
from core.trace import pack
from gateway.admission import Admission
from gateway.batching.entry import Entry, Ride
from gateway.batching.estimate import Estimate
from gateway.batching.policy import Formed, Policy
from gateway.batching.queue import NEVER
from gateway.transports.base import UNSERVED, Transport
from repository.records import Version
from workers.messages import Batch, Cancel, Column, Failure, Member, Output, Reply, Timing, failure_of

log = structlog.get_logger()
WAITING, ABOARD, OVER = Entry.WAITING, Entry.ABOARD, Entry.OVER
MIN_DELAY_S = 0.0005
CLOSED_WINDOW_NS = 20_000_000
"""A transport whose window is closed is asked again after this: it does not say when it opens."""
FULL_WINDOW_NS = 250_000_000
"""One whose window is full says by an answer that it has room, but not that it has closed."""
CLOSED_PATIENCE_NS = 3_000_000_000
"""What waits behind a window that is closed for so long is told to come again: its deadline may be far. As long as a
batch waits for a connection (`transports/amqp_flight.py`)."""

SECOND = 1_000_000_000
FRESH_NS = SECOND * 9 // 10

_ids = itertools.count(1)


class BatchDone:
    """What statistics need of one batch; times in monotonic nanoseconds.

    `succeeded` have their outputs, `failed` an error each (with its `reason`); who was cancelled or had expired by
    then is in neither. `rows` are those dispatched. `timing` is the worker's.
    """

    __slots__ = ("answered", "dispatched", "failed", "reason", "rows", "succeeded", "timing")

    def __init__(self, formed: Formed, timing: Timing, answered: int) -> None:
        self.rows = formed.rows
        self.reason = formed.reason
        self.dispatched = formed.dispatched
        self.answered = answered
        self.timing = timing
        self.succeeded: list[Entry] = []
        self.failed: list[tuple[Entry, PenstockError]] = []


class Demand:
    """A counter → how much it grows in a second, however often that is asked."""

    __slots__ = ("_at", "_counted", "_rate")

    def __init__(self) -> None:
        self._counted = self._rate = self._at = 0

    def of(self, count: int, now: int) -> int:
        """Measured over the time since it last was, which is most of a second at least. `now`: monotonic ns."""
        if now - self._at >= FRESH_NS:
            self._rate = round((count - self._counted) * SECOND / (now - self._at)) if self._at else count
            self._counted, self._at = count, now
        return self._rate


class Batcher:
    """The queue of one model version and the batches it has in flight on `transport`.

    `on_batch` is called once for each batch that came back, after its callers were answered. `elsewhere` is asked for
    each request whose version nobody serves any more, when this batcher is done with it: whether it is taken care of.
    """

    def __init__(
        self,
        version: Version,
        transport: Transport,
        settings: Settings,
        on_batch: Callable[[BatchDone], None],
        elsewhere: Callable[[Entry], bool] = lambda entry: False,
    ) -> None:
        self.version = version
        self.policy = Policy(version.max_batch, Estimate(version.max_batch, transport.samples))
        self.admission = Admission(
            self.policy, version.queue_bound or settings.queue_bound, round(settings.margin_ms * 1e6)
        )
        self.transport = transport
        self._on_batch = on_batch
        self._elsewhere = elsewhere
        self._loop = asyncio.get_running_loop()
        self._flights: dict[int, Formed] = {}
        """Batches in flight by their id."""
        self._asked = 0
        """Rows asked for, refused ones included."""
        self._demand = Demand()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = NEVER
        """What the timer is set to."""
        self._stuck = 0
        """Since when something waits behind a closed window; 0: it is open, or nothing does."""
        self._closed: PenstockError | None = None
        self._empty: asyncio.Event | None = None
        """Set when a drain has nothing left to wait for."""

    # --- for the data plane ---------------------------------------------------------------------------------------

    def submit(self, entry: Entry) -> None:
        """Let a request wait for its batch.

        Raises DeadlineExceeded, Hopeless, QueueFull, Draining, InvalidRequest; then the entry is not kept.
        """
        self._asked += entry.rows
        if self._closed is not None:
            raise again(self._closed)
        entry.submitted = now = time.monotonic_ns()
        pushed = self.admission.check(entry, now)
        if pushed is not None:
            self._refuse(pushed, self.admission.full())
        self.policy.add(entry)
        if not self._scheduled:
            self._schedule()

    def cancel(self, entry: Entry) -> None:
        """The caller has gone: its entry leaves the queue, or is dropped from the batch it is aboard of."""
        if entry.state == WAITING:
            self.policy.cancel(entry)
        elif entry.state == ABOARD:
            entry.state = OVER
            for number, formed in self._flights.items():
                if entry in formed.entries:
                    self.transport.cancel(Cancel(number, [formed.entries.index(entry)]))
                    break
        self._check_empty()

    async def drain(self, timeout: float) -> int:
        """Accept no more, wait up to `timeout` seconds until all are answered; returns how many are not."""
        if self._closed is None:
            self._closed = Draining("the model version is being retired", retry_after=1.0)
        self._empty = asyncio.Event()
        self._check_empty()
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            log.warning("drain timed out", model=self.version.model, version=self.version.version, left=self.pending)
        return self.pending

    def close(self, error: PenstockError) -> None:
        """Refuse all that wait or are aboard, and whatever comes, with `error`."""
        self._closed = error
        self._silence()
        waiting = list(self.policy.queue)
        for entry in waiting:
            self.policy.cancel(entry)
        aboard = [entry for formed in self._flights.values() for entry in formed.entries if entry.state == ABOARD]
        self._flights.clear()
        for entry in waiting + aboard:
            self._refuse(entry, error)
        self._check_empty()

    def share(self, now: int) -> Share:
        """What there is to do at `now`, and what was asked for in the last second or so."""
        demand = self._demand.of(self._asked, now)
        queue = self.policy.queue
        oldest = min((entry.arrived for entry in queue), default=now)
        return Share(
            self.version.model, self.version.version, demand, queue.rows, max(0, now - oldest), len(self._flights)
        )

    @property
    def pending(self) -> int:
        """Requests accepted and not answered."""
        aboard = sum(entry.state == ABOARD for formed in self._flights.values() for entry in formed.entries)
        return self.policy.queue.entries + aboard

    # --- dispatching ----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Send as many batches as the window takes; refuse whom the policy gives up."""
        self._scheduled = False
        policy, transport = self.policy, self.transport
        while True:
            now, window = time.monotonic_ns(), transport.window
            batch, expired, wake = policy.decide(now, window, transport.replicas, transport.gateways, punctual=True)
            if batch is not None:
                self._send(batch)
            for entry in expired:
                self._refuse(entry, _expired())
            if batch is None or not policy.queue.entries:
                break
        self._stuck = 0 if window or not policy.queue.entries else self._stuck or now
        self._set_alarm(now, wake)
        self._check_empty()

    def _send(self, formed: Formed) -> None:
        batch = message(formed, next(_ids), self.policy.batched)
        formed.expires = min(map(due, formed.entries))
        self._flights[batch.id] = formed
        try:
            self.transport.send(batch, self._answer)
        except Exception:
            error = _internal("a batch could not be sent")
            self._loop.call_soon(self._answer, _lost(batch, error))

    # --- answering ------------------------------------------------------------------------------------------------

    def _answer(self, reply: Reply) -> None:
        """A batch has come back: give each member its own, and let the next batch leave."""
        formed = self._flights.pop(reply.id, None)
        if formed is None:
            return
        now = time.monotonic_ns()
        assert formed.ride is not None
        formed.ride.timing = reply.timing
        self.policy.finished(formed, now, reply.timing)
        if self.policy.queue.entries and not self._scheduled:
            self._schedule()
        done = BatchDone(formed, reply.timing, now)
        if len(reply.results) == len(formed.entries):
            self._hand_out(formed, reply.results, reply.timing, done)
        else:
            self._fail(formed, _internal("a reply does not match its batch"), done)
        try:
            self._on_batch(done)
        except Exception:
            log.exception("statistics of a batch failed", model=self.version.model)
        self._check_empty()

    def _hand_out(self, formed: Formed, results: list[list[Output] | Failure], timing: Timing, done: BatchDone) -> None:
        dispatched, succeeded = formed.dispatched, done.succeeded
        for entry, result in zip(formed.entries, results, strict=True):
            if entry.state != ABOARD:
                continue
            if isinstance(result, Failure):
                if result is UNSERVED and self._goes_elsewhere(entry):
                    continue
                error = result.error()
                done.failed.append((entry, error))
                self._refuse(entry, error)
                continue
            entry.state = OVER
            succeeded.append(entry)
            try:
                entry.answer(result, timing, dispatched - entry.arrived)
            except Exception:
                log.exception("an answer could not be handed on", model=self.version.model)

    def _goes_elsewhere(self, entry: Entry) -> bool:
        entry.state = OVER
        try:
            return self._elsewhere(entry)
        except Exception:
            log.exception("a request could not be routed again", model=self.version.model)
            return False

    def _fail(self, formed: Formed, error: PenstockError, done: BatchDone) -> None:
        for entry in formed.entries:
            if entry.state == ABOARD:
                done.failed.append((entry, error))
                self._refuse(entry, error)

    def _refuse(self, entry: Entry, error: PenstockError) -> None:
        entry.state = OVER
        try:
            entry.refuse(error)
        except Exception:
            log.exception("a refusal could not be handed on", model=self.version.model)

    # --- the clock ------------------------------------------------------------------------------------------------

    def _set_alarm(self, now: int, wake: int) -> None:
        """Make sure that the timer stands no later than the next deadline. An early one only looks and goes on."""
        alarm = wake or NEVER
        for formed in self._flights.values():
            alarm = min(alarm, formed.expires)
        if self._stuck or (not self._flights and self.policy.queue.entries):
            alarm = min(alarm, now + CLOSED_WINDOW_NS)
        elif self.policy.queue.entries:
            alarm = min(alarm, now + FULL_WINDOW_NS)
        if alarm < self._alarm:
            if self._timer is not None:
                self._timer.cancel()
            self._alarm = alarm
            self._timer = self._loop.call_later(max(MIN_DELAY_S, (alarm - now) / 1e9), self._ring)

    def _ring(self) -> None:
        self._timer, self._alarm = None, NEVER
        now = time.monotonic_ns()
        for number, formed in list(self._flights.items()):
            if formed.expires <= now:
                self._expire_aboard(number, formed, now)
        self._dispatch()
        if self._stuck and now - self._stuck > CLOSED_PATIENCE_NS:
            self._turn_away()

    def _turn_away(self) -> None:
        self._stuck = 0
        for entry in list(self.policy.queue):
            self.policy.cancel(entry)
            self._refuse(entry, Unavailable("no worker takes the model's requests at the moment", retry_after=1.0))
        self._check_empty()

    def _expire_aboard(self, number: int, formed: Formed, now: int) -> None:
        """Tell the callers aboard whose deadline has passed, and the worker that they need no answer."""
        aboard = [(index, entry) for index, entry in enumerate(formed.entries) if entry.state == ABOARD]
        late = [(index, entry) for index, entry in aboard if due(entry) <= now]
        formed.expires = min((due(entry) for _, entry in aboard if due(entry) > now), default=NEVER)
        for _, entry in late:
            self._refuse(entry, _expired())
        if late:
            self.transport.cancel(Cancel(number, [index for index, _ in late]))

    def _silence(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._alarm = None, NEVER

    def _check_empty(self) -> None:
        if self._empty is not None and not self.pending:
            self._silence()
            self._empty.set()

    def __repr__(self) -> str:
        name = f"{self.version.model}/{self.version.version}"
        return f"<Batcher {name}: {self.policy.queue.entries} waiting, {len(self._flights)} batches in flight>"


def message(formed: Formed, number: int, batched: bool) -> Batch:
    """A formed batch as the worker gets it: members and pieces in one order. Its members learn what they ride in."""
    entries = formed.entries
    formed.ride = ride = Ride(formed.dispatched, formed.reason, formed.rows, len(entries))
    columns = [
        Column(column.name, column.datatype, column.shape, [entry.pieces[i] for entry in entries])
        for i, column in enumerate(formed.key.columns)
    ]
    members, context = [], None
    for entry in entries:
        entry.ride = ride
        member = Member(entry.rows, entry.deadline)
        if entry.trace is not None:
            member.trace = pack(entry.trace.compute)
            context = context or entry.trace.publish
        members.append(member)
    return Batch(number, batched, members, columns, dict(formed.key.parameters), context)


def due(entry: Entry) -> int:
    """Its deadline, as a number that compares."""
    return entry.deadline or NEVER


def again(error: PenstockError) -> PenstockError:
    """A fresh error like this one: one instance raised over and over would gather tracebacks."""
    return type(error)(error.message, retry_after=error.retry_after, error_id=error.error_id)


def _expired() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before an answer")


def _internal(what: str) -> Internal:
    """An error of ours; what happened goes to the log under its id."""
    error_id = new_error_id()
    log.error(what, error_id=error_id, exc_info=True)
    return Internal("the request failed inside the server", error_id=error_id)


def _lost(batch: Batch, error: Internal) -> Reply:
    return Reply(batch.id, [failure_of(error) for _ in batch.members], Timing())
