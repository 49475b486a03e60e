"""Who waits, and in what order.

    Queue ── Level (a priority) ── Tenant (in rotation, with a balance) ── Lane (one batch key) ── entries, by deadline

A lane is a heap of its entries. To find a tenant's earliest deadline over its lanes, and the queue's, without looking
at every lane, a lane *advertises* its head in two heaps: its tenant's `heads` and the queue's `alarms`. A lane's
advertisement is never later than its live head, so a reader that finds the head gone lets the lane advertise anew,
and goes on. Taking an entry out of the middle costs nothing: its state says that it has left, and it is dropped when
it surfaces, or by `_compact` once such leavings outnumber the living; the request's bytes are let go of at once.
All counts are kept as they change. Nothing here knows the time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from core.errors import InvalidRequest
from gateway.batching.entry import BatchKey, Entry

LEVELS = 10
"""Priorities are 1 (served first) to LEVELS; a larger number counts as LEVELS."""
DEFAULT_LEVEL = 5
"""What priority 0, the protocol's word for "none given", stands for."""
NEVER = 1 << 62
"""The deadline of an entry that has none, and the number of an advertisement that never was."""
SPARE = 32
"""Empty lanes and tenants kept for their return, and leavings tolerated, beyond as many as there are living ones."""


class Lane:
    """The waiting entries of one level, tenant and key: a heap of (deadline, number, entry)."""

    __slots__ = ("advert", "due", "heap", "key", "tenant")

    def __init__(self, key: BatchKey, tenant: Tenant) -> None:
        self.key = key
        self.tenant = tenant
        self.heap: list[tuple[int, int, Entry]] = []
        self.advert = 0
        """Number of the one advertisement that counts; 0: none."""
        self.due = NEVER + 1
        """What it says."""


Advert = tuple[int, int, int, Lane]
"""(deadline, number of the entry, number of the advertisement, lane): ordered by the first three."""


class Tenant:
    """One tenant at one level. `balance`: the rows it may still put into batches in this turn of the rotation.

    `listed`: it stands in the rotation; it leaves when its turn comes and nothing waits. `pace`: nanoseconds a row at
    which its backlog has been seen to drain, 0 while it has none.
    """

    __slots__ = (
        "_elapsed",
        "_served",
        "_since",
        "balance",
        "entries",
        "heads",
        "lanes",
        "level",
        "listed",
        "name",
        "pace",
        "rows",
    )

    def __init__(self, name: str, level: Level) -> None:
        self.name = name
        self.level = level
        self.balance = 0
        self.listed = False
        self.lanes: dict[BatchKey, Lane] = {}
        self.heads: list[Advert] = []
        self.entries = 0
        self.rows = 0
        self.pace = 0.0
        self._since = 0
        """When it was last served with more left; 0: not since it was last empty."""
        self._elapsed = 0.0
        self._served = 0.0

    def serve(self, rows: int, now: int) -> None:
        """`rows` of it have left at `now`: keep the pace, as a mean over about the last eight times."""
        if self._since:
            self._elapsed = self._elapsed * 0.875 + (now - self._since)
            self._served = self._served * 0.875 + rows
            self.pace = self._elapsed / self._served
        self._since = now

    def rest(self) -> None:
        """Nothing of it waits any more."""
        self._since, self._elapsed, self._served, self.pace = 0, 0.0, 0.0, 0.0


class Level:
    """One priority: its tenants, and the order in which they take turns. `active`: how many have something waiting."""

    __slots__ = ("active", "entries", "number", "rotation", "rows", "tenants")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tenants: dict[str, Tenant] = {}
        self.rotation: deque[Tenant] = deque()
        self.active = 0
        self.entries = 0
        self.rows = 0


class Queue:
    """The entries that wait for a batch of at most `capacity` rows."""

    __slots__ = ("_adverts", "_alarms", "_leavings", "_numbers", "capacity", "entries", "levels", "rows")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.levels = [Level(number) for number in range(1, LEVELS + 1)]
        self.entries = 0
        self.rows = 0
        self._alarms: list[Advert] = []
        self._numbers = 0
        self._adverts = 0
        self._leavings = 0

    # --- coming and going -----------------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        """Raises InvalidRequest for an entry that fits in no batch."""
        rows = entry.rows
        if not 0 < rows <= self.capacity:
            raise InvalidRequest(f"the request brings {rows} rows, the model takes 1 to {self.capacity}")
        level = self.levels[level_of(entry.priority) - 1]
        tenant = level.tenants.get(entry.tenant) or self._enrol(entry.tenant, level)
        if not tenant.listed:
            tenant.listed = True
            tenant.balance = self.capacity
            level.rotation.append(tenant)
        lane = tenant.lanes.get(entry.key) or _open(entry.key, tenant)
        self._numbers = number = self._numbers + 1
        due = entry.deadline or NEVER
        heappush(lane.heap, (due, number, entry))
        if due < lane.due:
            self._advertise(lane, due, number)
        self._count(tenant, 1, rows)

    def remove(self, entry: Entry) -> None:
        """Take out a waiting entry, wherever it stands."""
        tenant = self.levels[level_of(entry.priority) - 1].tenants[entry.tenant]
        entry.state = Entry.OVER
        entry.pieces = []
        self._count(tenant, -1, -entry.rows)
        self._leavings += 1
        if self._leavings > self.entries + SPARE:
            self._compact()

    def expire(self, now: int) -> list[Entry]:
        """Take out all whose deadline has come."""
        over: list[Entry] = []
        while (head := self._earliest()) is not None and head[0] <= now:
            over.append(self.pop(head[3]))
        return over

    def due(self) -> int:
        """The earliest deadline of any entry; 0 where none has one."""
        head = self._earliest()
        return head[0] if head is not None and head[0] < NEVER else 0

    def pop(self, lane: Lane) -> Entry:
        """Take out the head of a lane (a live one: see `head`) for good."""
        entry = heappop(lane.heap)[2]
        entry.state = Entry.OVER
        self._count(lane.tenant, -1, -entry.rows)
        return entry

    def held(self, tenant: str) -> int:
        """Entries of a tenant that wait, over all levels."""
        return sum(level.tenants[tenant].entries for level in self.levels if tenant in level.tenants)

    def crowded_out(self, tenant: str) -> Entry | None:
        """Take out one of the last entries of the tenant that holds most, if that is more than `tenant` will hold."""
        held = Counter[str]()
        for level in self.levels:
            held.update({name: tenant.entries for name, tenant in level.tenants.items()})
        largest = max(held, key=held.__getitem__, default=tenant)
        if held[largest] <= held[tenant] + 1:
            return None
        level = next(level for level in reversed(self.levels) if _holds(level, largest))
        lanes = sorted(level.tenants[largest].lanes.values(), key=lambda lane: len(lane.heap), reverse=True)
        return next(entry for entry in map(self._last, lanes) if entry is not None)

    def _last(self, lane: Lane) -> Entry | None:
        """Take out a leaf of the lane's heap: no other entry stands behind it."""
        while lane.heap:
            entry = lane.heap.pop()[2]
            if not entry.state:
                entry.state = Entry.OVER
                self._count(lane.tenant, -1, -entry.rows)
                return entry
            self._leavings -= 1
        return None

    def __iter__(self) -> Iterator[Entry]:
        """Every waiting entry, in no order."""
        for level in self.levels:
            for tenant in level.tenants.values():
                for lane in tenant.lanes.values():
                    yield from (entry for _, _, entry in lane.heap if not entry.state)

    # --- heads ----------------------------------------------------------------------------------------------------

    def lead(self, tenant: Tenant) -> Lane | None:
        """The lane with the tenant's earliest deadline; its head is live. None: the tenant has nothing waiting."""
        head = self._live(tenant.heads)
        return None if head is None else head[3]

    def head(self, lane: Lane) -> Entry | None:
        """The entry of a lane with the earliest deadline, those that have left dropped."""
        heap = lane.heap
        while heap and heap[0][2].state:
            heappop(heap)
            self._leavings -= 1
        return heap[0][2] if heap else None

    def _earliest(self) -> Advert | None:
        return self._live(self._alarms)

    def _live(self, adverts: list[Advert]) -> Advert | None:
        """The first advertisement that tells the truth, the others before it corrected or dropped."""
        while adverts:
            first = adverts[0]
            _, number, advert, lane = first
            if advert == lane.advert:
                if self.head(lane) is not None and lane.heap[0][1] == number:
                    return first
                self._renew(lane)
            heappop(adverts)
        return None

    def _renew(self, lane: Lane) -> None:
        if lane.heap:
            due, number, _ = lane.heap[0]
            self._advertise(lane, due, number)
        else:
            lane.advert, lane.due = 0, NEVER + 1

    def _advertise(self, lane: Lane, due: int, number: int) -> None:
        self._adverts = lane.advert = self._adverts + 1
        lane.due = due
        advert = (due, number, lane.advert, lane)
        heappush(lane.tenant.heads, advert)
        heappush(self._alarms, advert)

    # --- keeping count and house ----------------------------------------------------------------------------------

    def boarded(self, tenant: Tenant, entries: int, rows: int, now: int) -> None:
        """The caller has taken these from the heads of one of the tenant's lanes."""
        self._count(tenant, -entries, -rows)
        tenant.balance -= rows
        if tenant.entries:
            tenant.serve(rows, now)

    def _count(self, tenant: Tenant, entries: int, rows: int) -> None:
        level = tenant.level
        before = tenant.entries
        tenant.entries = after = before + entries
        if not before:
            level.active += 1
        elif not after:
            level.active -= 1
            tenant.rest()
        tenant.rows += rows
        level.entries += entries
        level.rows += rows
        self.entries += entries
        self.rows += rows

    def _enrol(self, name: str, level: Level) -> Tenant:
        if len(level.tenants) > 2 * level.active + SPARE:
            level.tenants = {name: tenant for name, tenant in level.tenants.items() if tenant.entries}
            level.rotation = deque(tenant for tenant in level.rotation if tenant.entries)
        tenant = level.tenants[name] = Tenant(name, level)
        return tenant

    def _compact(self) -> None:
        """Drop all leavings, and every advertisement with them."""
        self._leavings = 0
        self._alarms = []
        for level in self.levels:
            for tenant in level.tenants.values():
                tenant.heads = []
                for lane in tenant.lanes.values():
                    lane.heap = [item for item in lane.heap if not item[2].state]
                    heapify(lane.heap)
                    self._renew(lane)


def level_of(priority: int) -> int:
    """The level, 1 to LEVELS, of a request's `priority` (schedule policy extension: 0 is none given, 1 the highest)."""
    if priority <= 0:
        return DEFAULT_LEVEL
    return priority if priority < LEVELS else LEVELS


def _open(key: BatchKey, tenant: Tenant) -> Lane:
    if len(tenant.lanes) > 2 * tenant.entries + SPARE:
        tenant.lanes = {lane.key: lane for lane in tenant.lanes.values() if lane.heap}
    lane = tenant.lanes[key] = Lane(key, tenant)
    return lane


def _holds(level: Level, name: str) -> bool:
    tenant = level.tenants.get(name)
    return tenant is not None and tenant.entries > 0
