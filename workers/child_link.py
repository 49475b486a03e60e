"""A Unix socket to a child process: frames of `workers/messages.py` both ways.

No task per batch: a batch is written where it is sent, a reply is answered where it arrives. The child runs code of
a stranger, so nothing it says is taken on trust: a frame too long, one that cannot be read, an answer to nothing or
with other outputs than the model's signature names costs it its life, and another one is started.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import structlog

from core.datatypes import Buffer
from core.errors import TooLarge, WorkerLost
from repository.records import Version
from workers.child import Child
from workers.conformity import Conformity, check_times
from workers.frames import Frames
from workers.messages import Batch, Cancel, Reply, Timing, decode, encode, failure_of
from workers.watchdog import LOOK_S, MILLISECOND, SECOND, hung, latest_use
from workers.worker import Timed

log = structlog.get_logger(__name__)

_LOST = failure_of(WorkerLost("the model's process was lost; it is being started again"))

Done = Callable[[Reply], None]


class _Flight:
    __slots__ = ("batch", "reply", "sent")

    def __init__(self, batch: Batch, reply: Done, sent: int) -> None:
        self.batch = batch
        self.reply = reply
        self.sent = sent


class ChildLink:
    """`patience`: seconds before which a silent child never counts as hung, whatever the deadlines aboard, since a
    caller with a tiny one must not be able to have it killed. To whoever feeds it, it is a `Worker`.
    """

    def __init__(self, child: Child, patience: float = 10.0) -> None:
        self._child = child
        self._patience = patience
        self._conformity = Conformity(child.version)
        self._flights: dict[int, _Flight] = {}
        self._link: _Link | None = None
        self._services: deque[int] = deque(maxlen=128)
        self._replied = 0
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._changed: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        child.attach(lambda: _Link(self, child.max_reply))

    @property
    def ready(self) -> bool:
        """Whether there is a process to run a batch."""
        return self._link is not None

    @property
    def version(self) -> Version:
        return self._child.version

    @property
    def samples(self) -> list[Timed]:
        return list(self._child.samples)

    def __repr__(self) -> str:
        return f"<ChildLink {self.version.key}, {'up' if self.ready else 'down'}, {len(self._flights)} in flight>"

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called when `ready` changes."""
        self._changed = changed

    def submit(self, batch: Batch, reply: Done) -> None:
        """Send a batch; `reply` gets its answer exactly once, later: `worker_lost` where the process dies with it."""
        if self._link is None:
            self._loop.call_soon(reply, _lost(batch))
            return
        try:
            buffers = encode(batch)
        except ValueError:
            failure = failure_of(TooLarge("the batch is too large for one message"))
            self._loop.call_soon(reply, Reply(batch.id, [failure] * len(batch.members), Timing()))
            return
        self._flights[batch.id] = _Flight(batch, reply, time.monotonic_ns())
        self._idle.clear()
        self._link.write(buffers)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def cancel(self, cancel: Cancel) -> None:
        """Members have gone: they do not run unless they are running."""
        if self._link is not None and cancel.id in self._flights:
            self._link.write(encode(cancel))

    async def finish(self, patience: float) -> None:
        """Wait, for at most `patience` seconds; what is not answered by then is answered as lost."""
        try:
            await asyncio.wait_for(self._idle.wait(), patience)
        except TimeoutError:
            log.warning("child cut off", model=self.version.key, batches=len(self._flights))
        self._lose_all()

    # --- told by the link -----------------------------------------------------------------------------------------

    def connected(self, link: _Link) -> None:
        self._link = link
        self._changed()

    def lost(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
            self._lose_all()
            self._child.disconnected()
            self._changed()

    def condemn(self) -> None:
        self._child.kill("it spoke nonsense")

    def received(self, frame: memoryview) -> None:
        """One frame from the child. Raises ValueError for what it must not say."""
        reply = decode(frame)
        if not isinstance(reply, Reply):
            raise ValueError("a child only replies")
        flight = self._flights.get(reply.id)
        if flight is None:
            raise ValueError("a reply to no batch in flight")
        now = time.monotonic_ns()
        check_times(reply.timing, now - flight.sent)
        self._conformity.check(flight.batch, reply)
        del self._flights[reply.id]
        reply.timing.span = b""
        if not flight.sent <= reply.timing.started <= now:
            reply.timing.started = now
        self._services.append(now - max(flight.sent, self._replied))
        self._replied = now
        self._answer(flight, reply)

    def _answer(self, flight: _Flight, reply: Reply) -> None:
        if not self._flights:
            self._idle.set()
        flight.reply(reply)

    def _lose_all(self) -> None:
        flights, self._flights = list(self._flights.values()), {}
        for flight in flights:
            self._answer(flight, _lost(flight.batch))

    # --- a child that hangs ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._timer = None
        oldest = next(iter(self._flights.values()), None)
        if oldest is None:
            return
        if self._hung(oldest, time.monotonic_ns()):
            self._child.kill("it did not answer in time")
            return
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _hung(self, oldest: _Flight, now: int) -> bool:
        latest = latest_use(oldest.batch.members, oldest.sent, self.version.default_deadline_ms * MILLISECOND)
        silent_since = max(oldest.sent, self._replied)
        return hung(silent_since, latest, max(self._services, default=0), int(self._patience * SECOND), now)


def _lost(batch: Batch) -> Reply:
    return Reply(batch.id, [_LOST] * len(batch.members), Timing())


class _Link(asyncio.Protocol):
    """One connection, to one life of the child."""

    def __init__(self, owner: ChildLink, max_reply: int) -> None:
        self._owner = owner
        self._frames = Frames(max_reply)
        self._transport: asyncio.Transport | None = None
        self.write: Callable[[list[Buffer]], None] = lambda buffers: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.writelines
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._owner.received(frame)
        except ValueError as error:
            log.error("child spoke nonsense", child=repr(self._owner), error=str(error)[:200])
            self._owner.condemn()
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self)
