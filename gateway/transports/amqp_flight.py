"""One batch on its way through the broker, and what to do about it as time passes. Pure: `now` is an argument.

    posted ─► confirmed ─► answered, whole or member by member
      │           └─ silent for longer than 3 × p99 + 1 s ─► posted again: its replica hangs
      ├─ connection lost ─► waits for the next one ─► posted again
      ├─ unroutable ─► waits for the next look ─► posted again; the second time nobody serves the version
      └─ refused by the broker, or not confirmed while that is blocked ─► fails

A batch is posted again once at most, where the retry budget and its callers' deadlines leave room for that. One of
which parts have been answered, or that a worker says it tries member by member, is in good hands: it is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gateway.batching.estimate import p99
from gateway.transports.base import Done, Sample
from workers.messages import Batch, Failure, Output, Reply, Timing

Result = list[Output] | Failure

SECOND = 1_000_000_000
GRACE_NS = SECOND
"""After the last deadline aboard: an answer may still come, and frees its slot by itself."""
WAIT_NS = 3 * SECOND
"""A batch waits this long for a connection."""
UNHEARD_NS = SECOND // 4
"""A publish that a blocking broker has not confirmed by then will not be read soon."""

KEEP, POST, AGAIN, EXPIRED, LOST, BLOCKED = "keep", "post", "again", "expired", "lost", "blocked"


class Flight:
    """`number` is its id at the broker, `first` the index of its first member in the batch that it is a part of,
    `latest` the last deadline aboard. Times in monotonic nanoseconds."""

    __slots__ = (
        "again",
        "batch",
        "confirmed",
        "done",
        "first",
        "heard",
        "latest",
        "missing",
        "number",
        "over",
        "posted",
        "published",
        "results",
        "sent",
        "split",
        "unrouted",
        "waiting",
    )

    def __init__(self, batch: Batch, done: Done, number: int, first: int, now: int, latest: int) -> None:
        self.batch = batch
        self.done = done
        self.number = number
        self.first = first
        self.latest = latest
        self.sent = self.posted = self.heard = now
        self.published = 0
        """When the broker said that it has it; 0 = not yet."""
        self.waiting = True
        """For a connection, or to be posted once more."""
        self.confirmed = False
        self.again = False
        """It has been, or is to be, posted a second time."""
        self.unrouted = False
        self.split = False
        """Its members are answered one by one."""
        self.over = False
        self.results: list[Result | None] | None = None
        self.missing = len(batch.members)

    def __repr__(self) -> str:
        state = "over" if self.over else "waiting" if self.waiting else "confirmed" if self.confirmed else "posted"
        return f"<Flight {self.number} of {len(self.batch.members)} members, {self.missing} missing, {state}>"

    def own(self, members: Sequence[int]) -> list[int]:
        """Those of the whole batch's members that are aboard, by their index here."""
        return [at - self.first for at in members if 0 <= at - self.first < len(self.batch.members)]

    def put(self, now: int) -> None:
        """It is being published."""
        self.waiting, self.confirmed = False, False
        self.posted = self.heard = now

    def wait(self, now: int) -> None:
        """It is to be published (again) when that can be done."""
        self.waiting, self.confirmed = True, False
        self.posted = now

    def whole(self, results: Sequence[Result]) -> None:
        """An answer to all members: those that have one keep it."""
        if self.results is None:
            self.results = list(results)
        else:
            self.results = [new if old is None else old for old, new in zip(self.results, results, strict=True)]
        self.missing = 0

    def part(self, member: int, result: Result, now: int) -> None:
        """An answer to one member; the first counts."""
        self.split, self.heard = True, now
        if self.results is None:
            self.results = [None] * len(self.batch.members)
        if self.results[member] is None:
            self.results[member] = result
            self.missing -= 1

    def fail(self, failure: Failure) -> None:
        """All that have no answer yet get this one."""
        self.whole([failure] * len(self.batch.members))

    def reply(self, timing: Timing, now: int) -> Reply:
        """The answer to the whole batch. Time lost on a first way, or between parts, counts as queued."""
        results = [result for result in self.results or () if result is not None]
        computed = timing.compute_input + timing.compute_infer + timing.compute_output
        if (self.again or self.split) and computed:
            timing.queue = max(timing.queue, now - self.sent - computed)
        return Reply(self.batch.id, results, timing)

    def advice(self, now: int, limit: int, usual: int, blocked: bool) -> str:
        """What to do: `limit` is the longest silence, `usual` what an answer takes; `blocked`: the broker is."""
        if now > self.latest + (0 if self.waiting else GRACE_NS):
            return EXPIRED
        if self.waiting:
            return LOST if now - self.posted > WAIT_NS else POST
        if not self.confirmed:
            return BLOCKED if blocked and now - self.posted > UNHEARD_NS else KEEP
        return AGAIN if self.overdue(now, limit) and self.may_repeat(now, usual) else KEEP

    def overdue(self, now: int, limit: int) -> bool:
        return self.confirmed and now - self.heard > limit

    def may_repeat(self, now: int, usual: int) -> bool:
        """Whether it is worth posting again: not done yet, nobody at work on parts of it, and time for an answer."""
        return not self.again and not self.split and now + usual < self.latest


class Patience:
    """How long an answer takes, and so how long a silence is none yet. `samples`: the warm-up's."""

    RING = 128

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self._took: deque[int] = deque(maxlen=self.RING)
        self.seed(samples)

    def seed(self, samples: Sequence[Sample]) -> None:
        """What the slowest warm-up run took is believed at least."""
        self._floor = round(max((sample.seconds for sample in samples), default=0.0) * SECOND)

    def observe(self, took: int) -> None:
        self._took.append(took)

    @property
    def usual(self) -> int:
        """p99 of the time to an answer, in nanoseconds."""
        return max(p99(sorted(self._took)), self._floor)

    @property
    def limit(self) -> int:
        return 3 * self.usual + SECOND


class RetryBudget:
    """Each first try earns a tenth of a second one, so that repeats cannot multiply an overload."""

    SHARE, AT_FIRST, MOST = 0.1, 10.0, 100.0

    def __init__(self) -> None:
        self.tokens = self.AT_FIRST

    def earn(self) -> None:
        self.tokens = min(self.MOST, self.tokens + self.SHARE)

    def spend(self) -> bool:
        """Whether one more try is allowed; then it is counted."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
