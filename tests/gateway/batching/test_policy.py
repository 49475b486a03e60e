"""The policy's invariants over random traces in virtual time."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from core.errors import InvalidRequest
from gateway.batching.entry import BatchKey, ColumnKey, Entry
from gateway.batching.estimate import Estimate
from gateway.batching.policy import DEADLINE, FULL, KEY, REASONS, SLOT, UNBATCHED, Formed, Policy
from gateway.batching.queue import DEFAULT_LEVEL, LEVELS, NEVER, SPARE, level_of
from gateway.transports.base import Sample
from workers.messages import Timing

MS = 1_000_000
KEYS = [BatchKey((ColumnKey("x", "FP32", (width,)),)) for width in range(1, 5)]


def entry(
    rows: int = 1, *, now: int = 0, within: int = 1000 * MS, tenant: str = "a", key: int = 0, priority: int = 0
) -> Entry:
    return Entry(KEYS[key], rows, [b""], now, now + within if within else 0, tenant, priority)


def policy(max_batch: int = 8, fixed_ms: float = 0.0, row_ms: float = 0.0) -> Policy:
    sizes = [1 << k for k in range(11) if 1 << k <= max(1, max_batch)]
    samples = [Sample(b, (fixed_ms + row_ms * b) / 1e3) for b in sizes] if fixed_ms or row_ms else []
    return Policy(max_batch, Estimate(max_batch, samples))


def due(entry: Entry) -> int:
    return entry.deadline or NEVER


class Trace:
    """Drives one policy at random, keeps the truth beside it, and checks every decision against it."""

    def __init__(self, seed: int) -> None:
        self.random = chance = random.Random(seed)
        self.max_batch = chance.choice([0, 1, 2, 3, 5, 8, 8, 32])
        self.capacity = max(1, self.max_batch)
        self.window = chance.randint(1, 3)
        self.policy = policy(self.max_batch, chance.choice([0, 0, 2]), chance.choice([0, 0, 1]))
        self.now = 1
        self.waiting: dict[Entry, int] = {}
        """Arrival numbers, in the order of arrival."""
        self.aboard: list[Formed] = []
        self.outcomes: Counter[Entry] = Counter()
        self.entries: list[Entry] = []
        self.reasons: Counter[str] = Counter()
        self.gave_way = 0
        self.keys = chance.randint(1, 3)
        self.tenants = chance.choice(["a", "ab", "abc"])
        self.priorities = chance.choice([[0], [0], [0, 1], [0, 1, 2, 9, 99]])
        self.withins = chance.choice([[0], [50 * MS], [MS, 3 * MS, 9 * MS, 30 * MS], [0, 5 * MS, 5 * MS, 20 * MS]])

    def run(self, steps: int) -> None:
        moves = [self.arrive, self.arrive, self.arrive, self.leave, self.decide, self.decide, self.finish, self.wait]
        for _ in range(steps):
            self.random.choice(moves)()
            if self.random.random() < 0.3:
                self.check_counters()
        while self.waiting or self.aboard:
            self.decide()
            self.finish()
        self.check_counters()
        assert all(self.outcomes[entry] == 1 for entry in self.entries), "each entry has exactly one outcome"

    def arrive(self) -> None:
        chance = self.random
        rows = chance.randint(1, self.capacity) if chance.random() < 0.3 else 1
        for _ in range(chance.choice([1, 1, 2, 12])):
            new = entry(
                rows,
                now=self.now,
                within=chance.choice(self.withins),
                tenant=chance.choice(self.tenants),
                key=chance.randrange(self.keys),
                priority=chance.choice(self.priorities),
            )
            self.policy.add(new)
            self.waiting[new] = len(self.entries)
            self.entries.append(new)

    def leave(self) -> None:
        if self.waiting:
            gone = self.random.choice(list(self.waiting))
            self.policy.cancel(gone)
            self.settle(gone)

    def settle(self, gone: Entry) -> None:
        self.waiting.pop(gone)
        self.outcomes[gone] += 1
        assert gone.state == Entry.OVER

    def wait(self) -> None:
        self.now += self.random.choice([1, MS // 10, MS, 4 * MS])

    def finish(self) -> None:
        if self.aboard:
            done = self.aboard.pop(self.random.randrange(len(self.aboard)))
            self.wait()
            took = self.now - done.dispatched if self.random.random() < 0.9 else 0
            self.policy.finished(done, self.now, Timing(compute_infer=took))
            for member in done.entries:
                self.outcomes[member] += 1

    def decide(self) -> None:
        start = max(self.now, self.policy.busy_until)
        free = len(self.aboard) < self.window
        decision = self.policy.decide(self.now, self.window)
        led = True
        for given_up in decision.expired:
            self.settle(given_up)
            if due(given_up) - self.now >= max(1, self.policy.estimate.floor(given_up.rows)):
                self.gave_way += 1
                led = False
                assert decision.batch is not None, "it could have been kept"
        if decision.batch is not None:
            assert free, "the window is exceeded"
            self.check_order(decision.batch, led)
            self.check_batch(decision.batch, start, led)
            self.aboard.append(decision.batch)
        else:
            assert not free or not self.waiting, "a free slot and a waiting request"
        live = min(map(due, self.waiting), default=NEVER)
        assert decision.wake == (live if live < NEVER else 0)

    def check_order(self, batch: Formed, led: bool) -> None:
        """Priority, then earliest deadline within the leading tenant (`led`: it is still aboard); and within lanes,
        where only who does not fit any more is passed over."""
        leader = batch.entries[0]
        assert level_of(leader.priority) == min(level_of(entry.priority) for entry in self.waiting)
        rank = {entry: (due(entry), number) for entry, number in self.waiting.items()}
        peers = [e for e in self.waiting if line(e) == line(leader)]
        assert not led or rank[leader] == min(rank[peer] for peer in peers)
        for member in batch.entries:
            self.waiting.pop(member)
        for member in batch.entries:
            behind = [e for e in self.waiting if line(e) == line(member) and e.key == member.key]
            passed = [other for other in behind if rank[other] < rank[member]]
            assert not led or all(batch.rows + other.rows > self.policy.queue.capacity for other in passed)

    def check_batch(self, batch: Formed, start: int, led: bool) -> None:
        estimate, members = self.policy.estimate, batch.entries
        assert batch.rows == sum(member.rows for member in members)
        assert 0 < batch.rows <= self.capacity
        assert {member.key for member in members} == {batch.key}
        for member in members:
            assert member.state == Entry.ABOARD
            assert due(member) > self.now, "expired work was dispatched"
            assert due(member) - self.now >= estimate.floor(member.rows), "doomed work was dispatched"
            kept = estimate.most(due(member) - start - estimate.overhead)
            assert kept >= batch.rows or kept < member.rows, "the batch breaks a deadline that could be kept"
        self.reasons[batch.reason] += 1
        if led:
            self.check_reason(batch)

    def check_reason(self, batch: Formed) -> None:
        first: dict[tuple[int, str], Entry] = {}
        for waiting in sorted((e for e in self.waiting if e.key == batch.key), key=due):
            first.setdefault(line(waiting), waiting)
        fitting = [e for e in first.values() if e.rows + batch.rows <= self.capacity]
        if self.max_batch == 0:
            assert batch.reason == UNBATCHED
        elif batch.rows == self.capacity:
            assert batch.reason == FULL
        elif not self.waiting:
            assert batch.reason == SLOT
        elif fitting:
            assert batch.reason == DEADLINE, "it was closed though more would have fitted"
        else:
            assert batch.reason in (KEY, DEADLINE)

    def check_counters(self) -> None:
        queue = self.policy.queue
        assert set(queue) == set(self.waiting)
        assert (queue.entries, queue.rows) == totals(self.waiting)
        for level in queue.levels:
            inside = [e for e in self.waiting if level_of(e.priority) == level.number]
            assert (level.entries, level.rows) == totals(inside)
            assert level.active == len({e.tenant for e in inside})
            for name, tenant in level.tenants.items():
                assert (tenant.entries, tenant.rows) == totals(e for e in inside if e.tenant == name)


def line(entry: Entry) -> tuple[int, str]:
    return level_of(entry.priority), entry.tenant


def totals(entries: Iterable[Entry]) -> tuple[int, int]:
    rows = [entry.rows for entry in entries]
    return len(rows), sum(rows)


def test_random_traces_keep_every_invariant() -> None:
    """10,000 traces: one outcome each, one key a batch, never too many rows or batches, order, deadlines, counters."""
    reasons: Counter[str] = Counter()
    gave_way = 0
    for seed in range(10_000):
        trace = Trace(seed)
        trace.run(steps=9)
        reasons += trace.reasons
        gave_way += trace.gave_way
    assert set(reasons) == set(REASONS), "the traces see every reason"
    assert min(reasons.values()) > 500
    assert 50 < gave_way < sum(reasons.values()) / 20


def send(subject: Policy, now: int = 0) -> Formed:
    """The next batch, which comes back at once."""
    batch = subject.decide(now, 1).batch
    assert batch is not None
    subject.finished(batch, now, Timing())
    return batch


def lags(max_batch: int, tenants: list[str], rows: Callable[[random.Random], int], seed: int) -> tuple[float, int]:
    """How far any tenant ever fell behind the mean while all were backlogged, and the largest request, in rows."""
    chance = random.Random(seed)
    subject, served, waiting = policy(max_batch), Counter[str](), Counter[str]()
    worst, largest = 0.0, 0
    for _ in range(1500):
        for tenant in tenants:
            while waiting[tenant] < 3 * max_batch:
                new = entry(rows(chance), tenant=tenant, within=chance.choice([0, 10**12, 2 * 10**12]))
                subject.add(new)
                waiting[tenant] += new.rows
                largest = max(largest, new.rows)
        for member in send(subject).entries:
            served[member.tenant] += member.rows
            waiting[member.tenant] -= member.rows
        worst = max(worst, served.total() / len(tenants) - min(served[tenant] for tenant in tenants))
    return worst, largest


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mixed", [False, True])
def test_no_backlogged_tenant_lags_by_more_than_a_quantum_and_a_request(mixed: bool, seed: int) -> None:
    """Deficit round robin: the lag is bounded for ever, not a share of what was served, whatever sizes are sent."""
    max_batch = (4, 8, 32)[seed % 3]
    tenants = [f"t{i}" for i in range(2 + seed % 4)]
    worst, largest = lags(max_batch, tenants, lambda chance: chance.randint(1, max_batch) if mixed else 1, seed)
    assert worst <= max_batch + largest


def test_a_tenant_that_arrives_behind_a_flood_is_served_in_the_next_round() -> None:
    """A newcomer waits for one quantum of whoever is in front, not for the queue."""
    subject = policy(8)
    for _ in range(1000):
        subject.add(entry(tenant="flood"))
    send(subject)
    late = entry(tenant="late")
    subject.add(late)
    assert late in send(subject).entries + send(subject).entries


def test_a_key_cannot_starve_another() -> None:
    """The head by deadline chooses the key, though another key could fill the batch."""
    subject = policy(8)
    for _ in range(100):
        subject.add(entry(key=0))
    rare = entry(key=1, within=999 * MS)
    subject.add(rare)
    assert send(subject).entries == [rare]
    assert send(subject).reason == FULL


def test_entries_of_an_equal_key_ride_along_from_tenants_behind_and_lower_priorities() -> None:
    """A batch is filled across tenants and levels; a tenant with another key is passed by and leads the next."""
    subject = policy(8)
    lead, other = entry(tenant="a", priority=1), entry(tenant="b", key=1, priority=1)
    behind, lower = entry(tenant="c", priority=1), entry(tenant="d", priority=9)
    for new in (lower, lead, other, behind):
        subject.add(new)
    first = send(subject)
    assert first.entries == [lead, behind, lower]
    assert first.reason == KEY
    assert send(subject).entries == [other]


def test_priority_one_is_first_and_zero_is_the_default() -> None:
    """1, 2, … before the default, 0 in its place, larger numbers after; beyond the last level all are equal."""
    assert level_of(0) == DEFAULT_LEVEL == 5
    assert [level_of(p) for p in (1, 4, 5, 9, 10, 11, 2**63)] == [1, 4, 5, 9, LEVELS, LEVELS, LEVELS]
    subject = policy(1)
    entries = {p: entry(priority=p) for p in (99, 0, 2, 7, 1)}
    for new in entries.values():
        subject.add(new)
    assert [send(subject).entries[0] for _ in entries] == [entries[p] for p in (1, 2, 0, 7, 99)]


def test_a_batch_stops_growing_where_its_tightest_deadline_would_break() -> None:
    """With 2 + b ms a batch, 7 ms leave room for 5 rows; those left can wait for the next."""
    subject = policy(8, fixed_ms=2, row_ms=1)
    for within in (7, 1000, 1000, 1000, 1000, 1000, 1000):
        subject.add(entry(within=within * MS))
    batch = subject.decide(0, 1).batch
    assert batch is not None
    assert (batch.rows, batch.reason) == (5, DEADLINE)


def test_the_tightest_gives_way_where_it_would_cost_others_their_deadlines() -> None:
    """Keeping one of 4 ms would send the seven of 11 ms off in a second batch, too late: it is given up."""
    subject = policy(8, fixed_ms=2, row_ms=1)
    tight = entry(within=4 * MS)
    subject.add(tight)
    for _ in range(7):
        subject.add(entry(within=11 * MS))
    decision = subject.decide(0, 1)
    assert decision.expired == [tight]
    assert decision.batch is not None
    assert decision.batch.rows == 7


def test_the_small_fill_up_what_a_large_one_does_not_fit_into() -> None:
    """Five rows, then four, then three: the four wait, and lead the next batch."""
    subject = policy(8)
    first, large, small = entry(5, within=10 * MS), entry(4, within=20 * MS), entry(3, within=30 * MS)
    for new in (first, large, small):
        subject.add(new)
    assert send(subject).entries == [first, small]
    assert send(subject).entries == [large]


def test_batches_keep_their_distance_where_there_are_several_workers() -> None:
    """Of two workers one is free; four rows take 12 ms of one: the next few leave after 6 ms, a full batch a bit
    before; and at once where times are too short for a timer."""
    subject = policy(8, fixed_ms=8, row_ms=1)
    for _ in range(4):
        subject.add(entry(within=1000 * MS))
    assert subject.decide(0, 3, 2, punctual=True).batch is not None
    subject.add(entry(within=1000 * MS))
    assert subject.decide(MS, 3, 2, punctual=True) == (None, [], 6 * MS)
    for _ in range(7):
        subject.add(entry(within=1000 * MS))
    assert subject.decide(MS, 3, 2, punctual=True) == (None, [], 57 * MS // 10)
    assert subject.decide(57 * MS // 10, 3, 2, punctual=True).batch is not None
    quick = policy(8, fixed_ms=0.5, row_ms=0.05)
    for _ in range(2):
        quick.add(entry(within=1000 * MS))
        assert quick.decide(0, 3, 2, punctual=True).batch is not None


def test_nobody_gives_way_in_vain() -> None:
    """A higher priority aboard leaves no room for the three rows anyhow: the tight one of their priority stays."""
    subject = policy(8, fixed_ms=2, row_ms=1)
    aboard = [entry(within=6 * MS, priority=1), entry(within=5 * MS), entry(within=7 * MS)]
    kept_out = entry(3, within=7 * MS)
    for new in [*aboard, kept_out]:
        subject.add(new)
    decision = subject.decide(0, 1)
    assert decision.expired == []
    assert decision.batch is not None
    assert decision.batch.entries == aboard
    assert decision.batch.reason == DEADLINE


def test_what_cannot_be_kept_is_given_up_before_any_work() -> None:
    """Below the fastest run seen there is no chance; between that and p99 there is one, and it is taken."""
    subject = policy(8, fixed_ms=10)
    doomed, bold = entry(within=9 * MS), entry(within=10 * MS)
    subject.add(doomed)
    subject.add(bold)
    decision = subject.decide(0, 1)
    assert decision.expired == [doomed]
    assert decision.batch is not None
    assert decision.batch.entries == [bold]


def test_a_full_window_lets_nothing_out_but_the_expired() -> None:
    """No more than `window` batches are in flight; deadlines are seen to all the same, and told ahead."""
    subject = policy(8)
    subject.add(entry())
    assert subject.decide(0, 1).batch is not None
    waiting = entry(within=5 * MS)
    subject.add(waiting)
    assert subject.decide(0, 1) == (None, [], 5 * MS)
    assert subject.decide(5 * MS, 1) == (None, [waiting], 0)


def test_a_model_that_does_not_batch_runs_requests_one_by_one() -> None:
    """max_batch 0: one request a batch, closed by `unbatched`."""
    subject = policy(0)
    for _ in range(3):
        subject.add(entry())
    assert [(len(b.entries), b.reason) for b in (send(subject), send(subject))] == [(1, UNBATCHED)] * 2
    assert subject.formed == {UNBATCHED: 2, FULL: 0, SLOT: 0, DEADLINE: 0, KEY: 0}


@pytest.mark.parametrize("rows", [0, -1, 9])
def test_a_request_that_fits_in_no_batch_is_refused(rows: int) -> None:
    """It would stand at the head for ever."""
    with pytest.raises(InvalidRequest, match="1 to 8"):
        policy(8).add(entry(rows))


def test_cancelled_entries_leave_their_bytes_at_once_and_their_place_soon() -> None:
    """Of 10,000 that came and left behind one that stays, few are remembered; and so of lanes and tenants."""
    subject = policy(8)
    subject.add(entry())
    left: list[weakref.ref[Tracked]] = []
    for number in range(10_000):
        key = BatchKey((ColumnKey("x", "FP32", (number,)),))
        gone = Tracked(key, 1, [b"x"], 0, 10**9 - number, f"t{number}")
        subject.add(gone)
        subject.cancel(gone)
        assert gone.pieces == []
        left.append(weakref.ref(gone))
    del gone
    gc.collect()
    assert sum(ref() is not None for ref in left) <= 2 * SPARE
    level = subject.queue.levels[DEFAULT_LEVEL - 1]
    assert len(level.tenants) <= 2 * SPARE
    assert len(level.rotation) <= 2 * SPARE
    for number in range(10_000):
        gone = Tracked(BatchKey((ColumnKey("x", "FP32", (number,)),)), 1, [b"x"], 0, 10**9 - number, "a")
        subject.add(gone)
        subject.cancel(gone)
    assert len(level.tenants["a"].lanes) <= 2 * SPARE
    assert len(level.tenants["a"].heads) <= 4 * SPARE


class Tracked(Entry):
    __slots__ = ("__weakref__",)
