"""Who may join the queue: refused early, with a reason, is better than late.

- *Expired* already: DeadlineExceeded.
- *Hopeless*: the predicted answer comes after the deadline. Prediction = what is left of the batches in flight (and
  how much longer they have lately waited for: others' work)
  + the full batches ahead of its own, each on the worker that is free by then + the p99 service time of a batch such as
  it will ride in (as large as what waits, or as the latest ones) + the p99 overhead of the way there and back + a
  constant margin.
  A deadline that p99 says cannot be kept even by an idle worker is judged without the rare stalls that p99 knows.
  Rows ahead are those of higher priorities, the q of its own tenant, and of each other what turns let through first:
  at most q and a quantum. (Its own tenant's rows count in full, though an earlier deadline would overtake them: those
  accepted must not be made late.) Since others may come later and take their turns, the pace at which its tenant's
  backlog has been draining counts where it is slower, and two quanta on top: turns make it uneven.
- On an idle worker only what is below the fastest run ever seen is hopeless; and of those one in `PROBE` is let
  through, so that an estimate from worse times cannot refuse for ever the work that would correct it.
- *Full*: the queue holds `bound` requests. A tenant that holds less than its share of it pushes out one of the last
  of whoever holds most, so that a flood cannot close the door to others.

Refusals carry `Retry-After`: when the queue will have drained that far, by the same prediction.
"""

from __future__ import annotations

from math import ceil

from core.errors import DeadlineExceeded, Hopeless, QueueFull
from gateway.batching.entry import Entry
from gateway.batching.policy import Policy
from gateway.batching.queue import Level, Tenant, level_of

PROBE = 16
COUNTED = 64
"""Tenants of a level that are looked at one by one; of more, each is taken to have a turn's worth waiting."""
LONGEST_RETRY_S = 60.0
NOBODY = Tenant("", Level(0))
"""Stands for a tenant that has nothing waiting."""


class Admission:
    """The door of one queue. `bound` counts requests, `margin` is in nanoseconds."""

    __slots__ = ("_hopeless", "bound", "margin", "policy")

    def __init__(self, policy: Policy, bound: int, margin: int) -> None:
        self.policy = policy
        self.bound = bound
        self.margin = margin
        self._hopeless = 0
        """Refusals in a row on an idle worker."""

    def check(self, entry: Entry, now: int) -> Entry | None:
        """Let `entry` in, or raise DeadlineExceeded, Hopeless or QueueFull.

        Returns the waiting entry that had to go in its place, if one had to: it is out of the queue, and to be
        refused by the caller.
        """
        policy = self.policy
        if entry.deadline:
            budget = entry.deadline - now
            if budget <= 0:
                raise DeadlineExceeded("the deadline had passed when the request was complete")
            if policy.aboard or policy.queue.entries:
                self._hurry(entry, budget - self.margin, now)
            elif budget < policy.estimate.floor(entry.rows):
                self._probe(budget)
        if policy.queue.entries >= self.bound:
            return self._make_room(entry)
        return None

    def predict(self, entry: Entry, now: int) -> int:
        """Nanoseconds until the answer to `entry`, were it to join now."""
        policy = self.policy
        estimate = policy.estimate
        level = policy.queue.levels[level_of(entry.priority) - 1]
        tenant = level.tenants.get(entry.tenant, NOBODY)
        ahead = self._ahead(level, tenant)
        outlook, batches = policy.outlook, self._batches(ahead, entry.rows)
        wait = max(outlook.begins(batches, now), outlook.begins(0, now) + int(self._backlog(tenant, entry.rows))) - now
        size = max(policy.usual, ahead + entry.rows)
        hopeful = estimate.service(entry.rows) + estimate.overhead + self.margin > entry.deadline - now
        own = estimate.typical(size) if hopeful else estimate.service(size)
        return wait + outlook.bias + own + estimate.overhead

    def _hurry(self, entry: Entry, budget: int, now: int) -> None:
        """Raise Hopeless if the prediction exceeds the budget; what it is at most is tried first."""
        tenant = self.policy.queue.levels[level_of(entry.priority) - 1].tenants.get(entry.tenant, NOBODY)
        if self._crudely(tenant, now) <= budget or self._at_most(tenant, entry.rows, now) <= budget:
            return
        excess = self.predict(entry, now) - budget
        if excess > 0:
            raise Hopeless("the deadline cannot be met with the work that is ahead", retry_after=retry_after(excess))

    def _at_most(self, tenant: Tenant, rows: int, now: int) -> float:
        """What the prediction does not exceed: all that waits goes first, and the batch is the longest."""
        policy = self.policy
        estimate, outlook = policy.estimate, policy.outlook
        drained = self._batches(policy.queue.rows, rows) * estimate.full / outlook.share
        wait = max(outlook.free[-1] - now, 0) + drained + outlook.bias + self._backlog(tenant, rows)
        return wait + estimate.longest + estimate.overhead

    def _crudely(self, tenant: Tenant, now: int) -> float:
        """What that does not exceed, for a tenth of the work: each who waits rides alone in a full batch. Nearly all
        requests have time enough for it."""
        policy = self.policy
        estimate, queue, outlook = policy.estimate, policy.queue, policy.outlook
        each = estimate.full / outlook.share + queue.capacity * tenant.pace
        company = 2 * queue.capacity * estimate.pace
        known = max(outlook.free[-1] - now, 0) + outlook.bias + estimate.longest + estimate.overhead
        return known + (queue.entries + 1) * each + company

    def _ahead(self, level: Level, tenant: Tenant) -> int:
        """Rows that are served before the next of `tenant`, if turns go as they do now."""
        higher = sum(above.rows for above in self.policy.queue.levels[: level.number - 1])
        turn = tenant.rows + self.policy.queue.capacity
        if len(level.tenants) <= COUNTED:
            others = sum(min(other.rows, turn) for other in level.tenants.values() if other is not tenant)
        else:
            others = min(level.rows - tenant.rows, level.active * turn)
        return higher + tenant.rows + others

    def _backlog(self, tenant: Tenant, rows: int) -> float:
        """Nanoseconds for what a tenant has waiting at the pace it has drained, and two turns where it has company."""
        if not tenant.pace:
            return 0.0
        capacity = self.policy.queue.capacity
        company = min(2, len(tenant.level.tenants) - 1)
        ahead = tenant.rows if company else self._batches(tenant.rows, rows) * capacity
        return ahead * tenant.pace + company * capacity * self.policy.estimate.pace

    def _batches(self, ahead: int, rows: int) -> int:
        """Full batches before the one that `rows` ride in with `ahead` before them, if each holds as many as fit of
        requests of the mean size. Who is smaller counts as one of these: a larger one ahead may leave a gap."""
        queue = self.policy.queue
        mean = (queue.rows + rows) / (queue.entries + 1)
        return int((ahead + max(mean, rows) - 1) / max(mean, queue.capacity // mean * mean))

    def _probe(self, budget: int) -> None:
        self._hopeless += 1
        if self._hopeless % PROBE:
            raise Hopeless(f"no answer comes within {budget / 1e6:.3g} ms: the model takes longer than that")

    def _make_room(self, entry: Entry) -> Entry | None:
        queue = self.policy.queue
        held = queue.held(entry.tenant)
        if held < self.bound // (sum(level.active for level in queue.levels) + (not held)):
            pushed = queue.crowded_out(entry.tenant)
            if pushed is not None:
                return pushed
        raise self.full()

    def full(self) -> QueueFull:
        """The error for who finds no place, or loses it."""
        policy = self.policy
        drain = int(policy.queue.rows * policy.estimate.pace / policy.outlook.share)
        return QueueFull(f"{self.bound} requests are waiting already", retry_after=retry_after(drain))


def retry_after(wait: int) -> float:
    """Nanoseconds → whole seconds, at least one: what `Retry-After` can say."""
    return min(LONGEST_RETRY_S, max(1.0, float(ceil(wait / 1e9))))
