"""Which requests leave together, and when: stage 1 of the batching algorithm, without clock, loop or socket.

**No timer.** A batch leaves as soon as fewer than `window` are in flight; while they are, requests gather. Waiting
for company cannot enlarge the load that a worker sustains (at saturation a full batch waits at each dispatch anyway);
below saturation it only adds latency.

**Punctual.** What leaves early only queues at a busy worker, where nothing can join it and nobody can overtake it. So
the second batch of a worker is held until it would arrive as the first one can end; with windows of 2 sent at once, a
deadline of 2.5 full batches loses a seventh of the goodput (docs/batching.md). An end that comes earlier opens at once,
and times too short for a timer hold nothing. Where there are several workers, a batch also keeps a distance from the
last one, for as long as that keeps this gateway's part of them busy: a broker deals batches out in turn, so that two in
a row meet busy workers while others are idle. When that is, is `outlook.py`'s to say.

**Forming** picks a leader and fills up with entries of the leader's key:
1. The highest priority that has anything waiting leads. A flood at a high priority does starve the lower ones: that
   is what a priority says. Fairness is among tenants of one priority.
2. Tenants take turns, by deficit round robin (Shreedhar & Varghese, 1995) counted in rows, with a quantum of one full
   batch and equal weights: a tenant stays in front until it has put a quantum of rows into batches.
3. Within a tenant the earliest deadline goes first. Its key becomes the batch's key: a key cannot starve another,
   since each deadline comes to the head in its turn.
4. The batch is filled with entries of that key: of the leader, then of the tenants that follow, each while its
   balance lasts; room that is then left goes to anybody, on credit of their next turns; and then to the lower
   priorities. At most `LOOK` tenants are asked in each, and all keep their places.
   Hence, where all requests have one key and the small ones fill up what the large leave, no backlogged tenant lags
   behind another by more than a quantum and a request. Where a tenant's requests cannot share a batch (two halves
   and a bit), others use the room that it leaves: it loses nothing by that.

**Deadlines.** An entry is given up, before any work, when not even the fastest run seen would make it. The p99
estimate of the batch as filled so far must meet the tightest deadline aboard, else filling stops. Two exceptions keep
an overload from shrinking the batches to the slack of their tightest members, and so feeding on itself (simulated:
without them a load of twice the knee leaves a sixth of the goodput):
- An entry that p99 says is late even alone does not limit the batch: it takes its chance.
- Where the tightest keeps out an entry of its own priority that cannot wait for the next batch, it is given up; and so
  is an entry for which the batch is already too large, and the next one too late.

What not to do: count a batch's time from when it was sent (it may queue behind another at the worker: the worker
reports its own times), or let a mean stand for a p99.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from gateway.batching.entry import BatchKey, Entry, Ride
from gateway.batching.estimate import Estimate
from gateway.batching.outlook import Outlook
from gateway.batching.queue import NEVER, Lane, Level, Queue, Tenant, level_of
from workers.messages import Timing

ABOARD = Entry.ABOARD
FULL, SLOT, DEADLINE, KEY, UNBATCHED = "full", "slot", "deadline", "key", "unbatched"
REASONS: dict[str, str] = {
    FULL: "it holds as many rows as the model takes",
    SLOT: "a slot was free and nothing else waited",
    DEADLINE: "one row more would have broken the tightest deadline aboard",
    KEY: "what else waited has another key or did not fit",
    UNBATCHED: "the model runs requests one by one",
}
"""Why a batch was closed."""

LOOK = 64
"""Tenants that one filling passes over in a level before it stops looking for more of its key."""
PASSED = 16
"""Entries of a lane that are too large for what is left of a batch, before nobody behind them is looked at."""


class Formed:
    """A batch on its way: its members in the order of their rows, its times in monotonic nanoseconds."""

    __slots__ = (
        "begun",
        "deadline",
        "dispatched",
        "entries",
        "expires",
        "firm",
        "key",
        "limited",
        "reason",
        "ride",
        "room",
        "rows",
        "starts",
        "tightest",
    )

    def __init__(self, key: BatchKey, dispatched: int, room: int) -> None:
        self.key = key
        self.entries: list[Entry] = []
        self.rows = 0
        self.room = room
        """The rows it may hold: the model's maximum, or what the tightest deadline leaves of it."""
        self.deadline = NEVER
        """The tightest aboard that can be kept."""
        self.tightest: Entry | None = None
        """Whose deadline limits `room`."""
        self.expires = NEVER
        """The tightest of those aboard that still wait for an answer."""
        self.firm = room
        """What of `room` the higher priorities aboard leave."""
        self.limited = False
        """Whether a deadline kept an entry out."""
        self.dispatched = self.starts = dispatched
        """`starts`: when a worker is expected to begin with it, by what this gateway has sent itself."""
        self.begun = 0
        """When it came to be among the first in flight."""
        self.reason = SLOT
        self.ride: Ride | None = None
        """What its members know of it, from its dispatch on."""

    def __repr__(self) -> str:
        return f"<Formed {len(self.entries)} requests, {self.rows} rows, closed by {self.reason}>"


class Decision(NamedTuple):
    """`batch` is to be sent now, `expired` to be refused. `wake`: when the next entry expires, 0 = none will."""

    batch: Formed | None
    expired: list[Entry]
    wake: int


class Policy:
    """The waiting entries of one model version, and its batches in flight. `max_batch` < 1: one by one."""

    __slots__ = ("aboard", "add", "batched", "cancel", "estimate", "formed", "outlook", "queue", "usual")

    def __init__(self, max_batch: int, estimate: Estimate) -> None:
        self.estimate = estimate
        self.batched = max_batch >= 1
        self.queue = Queue(max(1, max_batch))
        self.add = self.queue.add
        self.cancel = self.queue.remove
        self.aboard: list[Formed] = []
        self.outlook = Outlook(estimate)
        self.usual = 0
        """Rows of the largest of the latest batches: an eighth less with each batch that is smaller."""
        self.formed = dict.fromkeys(REASONS, 0)
        """Batches formed, by the reason they were closed."""

    @property
    def busy_until(self) -> int:
        """When a worker is expected to be free for the next batch."""
        return self.outlook.free[0]

    @property
    def replicas(self) -> int:
        """Workers that take what is sent, whoever sends."""
        return self.outlook.replicas

    def decide(self, now: int, window: int, replicas: int = 1, gateways: int = 1, punctual: bool = False) -> Decision:
        """`window`: batches that may be in flight; `replicas`: how many workers they are for, `gateways`: of how many.

        `punctual`: what would only wait at a busy worker is held back until the outlook `opens`, and `wake` heeds that.
        """
        self.outlook.count(replicas, gateways)
        expired = self.queue.expire(now)
        batch, opens = None, 0
        if len(self.aboard) < window and self.queue.entries:
            opens = self.outlook.opens(self.aboard, self.queue.rows >= self.queue.capacity, now) if punctual else now
            if opens <= now:
                batch = self._form(now, expired)
        due = self.queue.due()
        held = opens > now and self.queue.entries
        return Decision(batch, expired, min(due or NEVER, opens) if held else due)

    def finished(self, batch: Formed, now: int, timing: Timing) -> None:
        """The worker has answered: a slot is free, and the estimate knows more. A batch that never ran counts not."""
        self.aboard.remove(batch)
        computed = timing.compute_input + timing.compute_infer + timing.compute_output
        if computed > 0:
            overhead = now - batch.dispatched - timing.queue - computed
            self.estimate.observe(timing.executed_rows or batch.rows, computed, max(0, overhead))
            self.outlook.surprised(batch.dispatched + timing.queue - batch.starts)
            own = batch.rows / (timing.executed_rows or batch.rows)
            self.outlook.got(computed * own, now, self.queue.entries > 0)
        self.outlook.foresee(self.aboard, now)

    # --- forming --------------------------------------------------------------------------------------------------

    def _form(self, now: int, expired: list[Entry]) -> Formed | None:
        batch = None
        for level in self.queue.levels:
            if level.entries and (batch is None or batch.rows < batch.room):
                if batch is None:
                    batch = self._lead(level, now, expired)
                    if batch is None:
                        continue
                batch.firm = batch.room
                self._fill(batch, level, expired)
        if batch is not None:
            self._close(batch)
        return batch

    def _lead(self, level: Level, now: int, expired: list[Entry]) -> Formed | None:
        """An empty batch of the key of whoever's turn it is, that tenant being first in the rotation."""
        rotation = level.rotation
        while rotation:
            tenant = rotation[0]
            lane = self.queue.lead(tenant)
            if lane is None:
                tenant.listed = False
                rotation.popleft()
                continue
            entry = lane.heap[0][2]
            if lane.heap[0][0] - now < self.estimate.floor(entry.rows):
                expired.append(self.queue.pop(lane))
            elif entry.rows > tenant.balance:
                tenant.balance += self.queue.capacity
                rotation.rotate(-1)
            else:
                return Formed(lane.key, now, self.queue.capacity)
        return None

    def _fill(self, batch: Formed, level: Level, expired: list[Entry]) -> None:
        passed = self._by_turns(batch, level, expired)
        if level.entries and batch.rows < batch.room:
            self._in_spare_room(batch, passed, expired)
        level.rotation.extendleft(reversed(passed))

    def _by_turns(self, batch: Formed, level: Level, expired: list[Entry]) -> list[Tenant]:
        """Tenants in their order, each by its balance. Returns them: they are to be put back where they stood."""
        rotation = level.rotation
        passed: list[Tenant] = []
        while rotation and batch.rows < batch.room and len(passed) < LOOK:
            tenant = rotation.popleft()
            passed.append(tenant)
            lane = tenant.lanes.get(batch.key)
            if lane is not None:
                self._board(batch, lane, tenant, tenant.balance, expired)
        return passed

    def _in_spare_room(self, batch: Formed, passed: list[Tenant], expired: list[Entry]) -> None:
        """Rows that nobody can use by turns go to whoever has a fitting entry, on credit of a quantum at most."""
        for tenant in passed:
            lane = tenant.lanes.get(batch.key)
            if lane is not None and lane.heap:
                self._board(batch, lane, tenant, self.queue.capacity, expired)
                tenant.balance = max(tenant.balance, -self.queue.capacity)

    def _board(self, batch: Formed, lane: Lane, tenant: Tenant, balance: int, expired: list[Entry]) -> None:
        """Move entries from a lane aboard while they fit, and `balance` rows last."""
        queue, heap, entries = self.queue, lane.heap, batch.entries
        boarded, taken = 0, 0
        large: list[tuple[int, int, Entry]] = []
        while heap:
            due, _, entry = heap[0]
            rows = entry.rows
            if entry.state:
                queue.head(lane)
                continue
            if rows > balance - taken:
                break
            if due < batch.deadline:
                if due - batch.dispatched < self.estimate.floor(rows):
                    expired.append(queue.pop(lane))
                    continue
                if not self._tighten(batch, entry, due):
                    if self._waits_in_vain(batch, due, rows):
                        expired.append(queue.pop(lane))
                        continue
                    batch.limited = True
                    break
            if batch.rows + rows > batch.room:
                if batch.rows + rows > queue.capacity:
                    if batch.rows == queue.capacity or len(large) == PASSED:
                        break
                    large.append(heappop(heap))
                    continue
                if not self._must_give_way(batch, entry, due, queue.rows - taken):
                    batch.limited = True
                    break
                expired.append(self._give_up(batch))
                continue
            heappop(heap)
            entry.state = ABOARD
            entries.append(entry)
            batch.rows += rows
            boarded += 1
            taken += rows
        for item in large:
            heappush(heap, item)
        if taken:
            queue.boarded(tenant, boarded, taken, batch.dispatched)

    def _tighten(self, batch: Formed, entry: Entry, due: int) -> bool:
        """Whether a candidate may join those aboard; if so, its deadline limits the batch from now on.

        One that is late even alone takes its chance and limits nothing; one for which the batch is already too large
        waits for the next.
        """
        room = self._room(batch, due)
        if room < entry.rows:
            return True
        if room < batch.rows + entry.rows:
            return False
        if room < batch.room:
            batch.room = room
            batch.tightest = entry
        batch.deadline = due
        return True

    def _room(self, batch: Formed, due: int) -> int:
        """The rows that the batch may hold so that it comes back by `due`."""
        return self.estimate.most(due - self._start(batch) - self.estimate.overhead)

    def _start(self, batch: Formed) -> int:
        """When a worker begins with a batch that leaves now."""
        return max(batch.dispatched, self.busy_until)

    def _waits_in_vain(self, batch: Formed, due: int, rows: int) -> bool:
        """Whether a batch of `rows` that leaves after this one comes back too late."""
        estimate = self.estimate
        start = self._start(batch) + estimate.typical(batch.rows)
        return start + estimate.service(rows) + estimate.overhead > due

    def _must_give_way(self, batch: Formed, entry: Entry, due: int, waiting: int) -> bool:
        """Whether the tightest aboard keeps out an entry of its own priority that cannot wait for the next batch."""
        tightest = batch.tightest
        if tightest is None or level_of(tightest.priority) != level_of(entry.priority):
            return False
        if due - batch.dispatched < self.estimate.floor(entry.rows):
            return False
        if batch.rows - tightest.rows + entry.rows > batch.firm:
            return False
        return self._waits_in_vain(batch, due, min(waiting, self.queue.capacity))

    def _give_up(self, batch: Formed) -> Entry:
        """Put the tightest off board again, and let the next tightest limit the batch."""
        lost = batch.tightest
        assert lost is not None
        batch.entries.remove(lost)
        batch.rows -= lost.rows
        batch.room, batch.deadline, batch.tightest = self.queue.capacity, NEVER, None
        lost.state = Entry.OVER
        for entry in batch.entries:
            due = entry.deadline or NEVER
            room = self._room(batch, due)
            if due < batch.deadline and room >= batch.rows:
                batch.deadline = due
                if room < batch.room:
                    batch.room, batch.tightest = room, entry
        return lost

    def _close(self, batch: Formed) -> None:
        batch.reason = self._reason(batch)
        self.formed[batch.reason] += 1
        self.aboard.append(batch)
        self.usual = max(batch.rows, self.usual - (self.usual + 7) // 8)
        batch.starts = self._start(batch)
        self.outlook.foresee(self.aboard, batch.dispatched)

    def _reason(self, batch: Formed) -> str:
        if not self.batched:
            return UNBATCHED
        if batch.rows == self.queue.capacity:
            return FULL
        if not self.queue.entries:
            return SLOT
        return DEADLINE if batch.limited or batch.rows == batch.room else KEY

    def __repr__(self) -> str:
        return f"<Policy {self.queue.entries} waiting with {self.queue.rows} rows, {len(self.aboard)} batches aboard>"
