"""The policy's invariants over random traces in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from gateway.batching.entry import BatchKey, ColumnKey, Entry
from gateway.batching.estimate import Estimate
from gateway.batching.policy import DEADLINE, FULL, KEY, REASONS, SLOT, UNBATCHED, Formed, Policy
from gateway.batching.queue import NEVER, level_of
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
        self.keys = chance.randint(1, 3)
        self.tenants = chance.choice(["a", "ab", "abc"])
        self.priorities = chance.choice([[0], [0], [0, 1], [0, 1, 2, 9, 99]])
        self.withins = chance.choice([[0], [50 * MS], [MS, 3 * MS, 9 * MS, 30 * MS], [0, 5 * MS, 5 * MS, 20 * MS]])

    def run(self, steps: int) -> None:
        moves = [self.arrive, self.arrive, self.arrive, self.leave, self.decide, self.decide, self.finish, self.wait]
        for _ in range(steps):
            self.random.choice(moves)()
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
        for given_up in decision.expired:
            assert due(given_up) - self.now <= self.policy.estimate.floor(given_up.rows), "it could have been kept"
            self.settle(given_up)
        if decision.batch is not None:
            assert free, "the window is exceeded"
            self.check_order(decision.batch)
            self.check_batch(decision.batch, start)
            self.aboard.append(decision.batch)
        else:
            assert not free or not self.waiting, "a free slot and a waiting request"
        live = min(map(due, self.waiting), default=NEVER)
        assert decision.wake == (live if live < NEVER else 0)

    def check_order(self, batch: Formed) -> None:
        """Priority, then earliest deadline within the leading tenant; and within each tenant and key."""
        leader = batch.entries[0]
        assert level_of(leader.priority) == min(level_of(entry.priority) for entry in self.waiting)
        rank = {entry: (due(entry), number) for entry, number in self.waiting.items()}
        peers = [e for e in self.waiting if line(e) == line(leader)]
        assert rank[leader] == min(rank[peer] for peer in peers)
        for member in batch.entries:
            self.waiting.pop(member)
        for member in batch.entries:
            behind = [e for e in self.waiting if line(e) == line(member) and e.key == member.key]
            assert all(rank[member] < rank[other] for other in behind)

    def check_batch(self, batch: Formed, start: int) -> None:
        estimate, members = self.policy.estimate, batch.entries
        assert batch.rows == sum(member.rows for member in members)
        assert batch.rows <= self.capacity
        assert {member.key for member in members} == {batch.key}
        for member in members:
            assert member.state == Entry.ABOARD
            assert due(member) > self.now, "expired work was dispatched"
            kept = estimate.most(due(member) - start - estimate.overhead)
            assert kept >= batch.rows or kept < member.rows, "the batch breaks a deadline that could be kept"
        self.reasons[batch.reason] += 1
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
    for seed in range(10_000):
        trace = Trace(seed)
        trace.run(steps=12)
        reasons += trace.reasons
    assert set(reasons) == set(REASONS), "the traces see every reason"
    assert min(reasons.values()) > 500
