"""Who is let in, who is refused and with what advice; and what that does to an overload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DeadlineExceeded, Hopeless, QueueFull
from gateway.admission import LONGEST_RETRY_S, NOBODY, PROBE, Admission, retry_after
from gateway.batching.entry import Entry
from gateway.batching.estimate import Estimate
from gateway.batching.policy import Policy
from gateway.batching.queue import level_of
from gateway.transports.base import Sample
from tests.gateway.batching.simulation import KEY, Model, Simulation, Source

MS = 1_000_000


def door(bound: int = 100, fixed_ms: float = 2, row_ms: float = 1, max_batch: int = 8) -> Admission:
    """The door of a model of 2 + b ms a batch of b rows, without margin."""
    samples = [Sample(1 << k, (fixed_ms + row_ms * (1 << k)) / 1e3) for k in range(max_batch.bit_length())]
    return Admission(Policy(max_batch, Estimate(max_batch, samples)), bound, 0)


def entry(within_ms: float = 1000, *, rows: int = 1, tenant: str = "a", priority: int = 0) -> Entry:
    return Entry(KEY, rows, [b""], 0, int(within_ms * MS), tenant, priority)


def fill(subject: Admission, count: int, tenant: str = "a", priority: int = 0) -> None:
    for _ in range(count):
        subject.policy.add(entry(10**6, tenant=tenant, priority=priority))


def busy(subject: Admission) -> None:
    """One full batch in flight, 10 ms of work, and nothing waiting."""
    fill(subject, 8)
    assert subject.policy.decide(0, 2).batch is not None


def test_an_expired_request_is_told_so() -> None:
    """Not 503: no retry would help."""
    with pytest.raises(DeadlineExceeded):
        door().check(entry(1), MS)


def test_an_idle_system_refuses_only_what_is_below_the_fastest_run_seen() -> None:
    """3 ms for one row: 2.9 is hopeless, 3 is not, and no deadline is no trouble."""
    with pytest.raises(Hopeless, match=r"2\.9 ms"):
        door().check(entry(2.9), 0)
    assert door().check(entry(3), 0) is None
    assert door().check(Entry(KEY, 1, [b""], 0, 0), 0) is None


def test_one_hopeless_request_in_a_while_is_tried_on_an_idle_worker() -> None:
    """An estimate that is too high meets the evidence against it."""
    subject = door()
    refused = 0
    for _ in range(10 * PROBE):
        try:
            subject.check(entry(1), 0)
        except Hopeless:
            refused += 1
    assert refused == 10 * (PROBE - 1)


def test_a_deadline_within_the_work_ahead_is_hopeless_at_once() -> None:
    """10 ms in flight and 8 rows ahead: 10 + 10 + 10 ms; advice to come back in a second."""
    subject = door()
    busy(subject)
    fill(subject, 8)
    assert subject.predict(entry(), 0) == 30 * MS
    assert subject.check(entry(30), 0) is None
    with pytest.raises(Hopeless) as refusal:
        subject.check(entry(29.9), 0)
    assert refusal.value.retry_after == 1


@given(st.data())
def test_what_is_tried_first_is_never_less_than_the_prediction(data: st.DataObject) -> None:
    """Whatever waits, whose it is, what flies, and what has been seen so far."""
    whole = st.integers(0, 100 * MS)
    subject = door(
        fixed_ms=data.draw(st.sampled_from([0.0, 2.0, 20.0])), max_batch=data.draw(st.sampled_from([1, 8, 20, 33]))
    )
    policy, most = subject.policy, subject.policy.queue.capacity
    replicas, gateways = st.integers(1, 8), st.integers(1, 4)
    there = data.draw(replicas), data.draw(gateways)
    rows, tenants = st.integers(1, most), st.sampled_from("abcd")
    for _ in range(data.draw(st.integers(0, 30))):
        policy.add(entry(10**6, rows=data.draw(rows), tenant=data.draw(tenants), priority=data.draw(st.integers(0, 2))))
    for _ in range(data.draw(st.integers(0, 3))):
        policy.decide(0, 9, *there)
    policy.outlook.count(data.draw(replicas), data.draw(gateways))
    for level in policy.queue.levels:
        for tenant in level.tenants.values():
            tenant.pace = data.draw(st.sampled_from([0.0, 1e3, 5e6]))
    policy.outlook.bias = data.draw(whole)
    now = data.draw(whole)
    within = data.draw(st.sampled_from([1, 50, 1000]))
    one = entry(within, rows=data.draw(rows), tenant=data.draw(tenants), priority=data.draw(st.integers(0, 2)))
    tenant = policy.queue.levels[level_of(one.priority) - 1].tenants.get(one.tenant, NOBODY)
    predicted, at_most = subject.predict(one, now), subject._at_most(tenant, one.rows, now)
    assert predicted <= at_most + 1
    assert at_most <= subject._crudely(tenant, now) + 1


def test_the_margin_is_kept_under_each_deadline_of_a_busy_worker() -> None:
    """With 2 ms of margin, 30 ms of prediction need 32."""
    subject = door()
    subject.margin = 2 * MS
    busy(subject)
    fill(subject, 8)
    assert subject.check(entry(32), 0) is None
    with pytest.raises(Hopeless):
        subject.check(entry(31), 0)


def test_work_of_lower_priority_is_not_ahead_and_that_of_higher_is() -> None:
    """The default waits for priority 1, and not the other way round."""
    subject = door()
    fill(subject, 80, priority=0)
    assert subject.predict(entry(priority=1), 0) < subject.predict(entry(priority=0), 0)
    assert subject.predict(entry(priority=9), 0) == subject.predict(entry(priority=0), 0)


def test_a_flood_is_ahead_of_another_tenant_by_one_quantum_only() -> None:
    """800 rows of one tenant: another waits for 8 of them, and is let in where the flood is not."""
    subject = door(bound=10_000)
    fill(subject, 800, "flood")
    assert subject.check(entry(30, tenant="b"), 0) is None
    with pytest.raises(Hopeless) as refusal:
        subject.check(entry(30, tenant="flood"), 0)
    assert refusal.value.retry_after == 1


def test_a_full_queue_says_when_it_will_have_drained() -> None:
    """100 requests at 1 s and a row: far too long for more than the longest advice."""
    subject = door(bound=100, fixed_ms=0, row_ms=1000)
    fill(subject, 100)
    with pytest.raises(QueueFull, match="100") as refusal:
        subject.check(entry(10**9), 0)
    assert refusal.value.retry_after == LONGEST_RETRY_S


def test_retry_after_is_in_whole_seconds_from_one() -> None:
    """What the header can say."""
    assert [retry_after(int(s * 1000 * MS)) for s in (0, 0.2, 1.0, 1.2, 500)] == [1, 1, 1, 2, LONGEST_RETRY_S]


def test_a_flood_at_the_bound_makes_room_for_others_up_to_their_share() -> None:
    """Who holds most loses one of its last for each that comes, until shares are equal; the flood itself is refused."""
    subject = door(bound=10)
    fill(subject, 10, "flood")
    for _ in range(5):
        pushed = subject.check(new := entry(10**6, tenant="b"), 0)
        assert pushed is not None
        assert (pushed.tenant, pushed.state) == ("flood", Entry.OVER)
        subject.policy.add(new)
        assert subject.policy.queue.entries == 10
    for tenant in ("b", "flood"):
        with pytest.raises(QueueFull):
            subject.check(entry(10**6, tenant=tenant), 0)
    assert subject.check(entry(10**6, tenant="c"), 0) is not None


def test_what_is_pushed_out_is_live_and_of_the_lowest_priority() -> None:
    """Cancelled entries at the end of the queue are passed over, and high priorities are spared."""
    subject = door(bound=4)
    fill(subject, 2, "flood", priority=1)
    low = [entry(10**6, tenant="flood", priority=9) for _ in range(3)]
    for waiting in low:
        subject.policy.add(waiting)
    subject.policy.cancel(low[2])
    assert subject.check(entry(10**6, tenant="b"), 0) is low[1]


MODELS = [Model(2, 0.5), Model(10, 2), Model(5, 5), Model(2, 0.5, noise=1.0)]


def test_who_rides_in_the_same_batch_does_not_count_twice() -> None:
    """10 ms in flight; seven rows ahead leave with the eighth: 10 + 10 ms, and the ninth waits for one batch more."""
    subject = door()
    busy(subject)
    fill(subject, 7)
    assert subject.predict(entry(), 0) == 20 * MS
    fill(subject, 1)
    assert subject.predict(entry(), 0) == 30 * MS


def test_requests_of_several_rows_count_as_they_fit() -> None:
    """Of those with three rows two fit into eight: the third one waits for a batch more. Larger than a batch is no
    reason to stumble: the queue refuses it."""
    subject = door()
    busy(subject)
    for _ in range(2):
        subject.policy.add(entry(10**6, rows=3))
    assert subject.predict(entry(rows=3), 0) == 30 * MS
    assert subject.predict(entry(rows=100), 0) > 30 * MS


def test_each_of_several_workers_is_seen_by_itself() -> None:
    """Two workers, free at 10 and 6 ms: the next batch starts at 6, the one after it at 10, the third at 16."""
    subject = door()
    policy = subject.policy
    policy.outlook.count(2, 1)
    for rows in (8, 4):
        fill(subject, rows)
        assert policy.decide(0, 4, 2).batch is not None
    assert [policy.outlook.begins(batches, 0) // MS for batches in range(3)] == [6, 10, 16]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("deadline", [4, 20])
def test_goodput_holds_under_overload_and_the_accepted_are_in_time(model: Model, deadline: float) -> None:
    """1.5 to 10 times the knee, deadlines of 4 and 20 full batches: ≥ 95 % of the knee, ≤ 1 % of the accepted late."""
    full = model.mean(model.max_batch) / MS
    for load in (1.5, 3, 10):
        done = Simulation(model, [Source("a", load * model.knee, deadline * full)], seed=7).run(80 * full / 1000)
        assert done.goodput >= 0.95 * model.knee
        assert done.late.total() <= 0.01 * (done.good.total() + done.late.total())


@pytest.mark.parametrize("model", MODELS[:3])
def test_deadlines_of_two_batches_and_a_half_cost_goodput_and_not_promises(model: Model) -> None:
    """With two batches in flight ahead that is tight: ≥ 90 % of the knee, and still ≤ 1 % of the accepted late."""
    full = model.mean(model.max_batch) / MS
    for load in (1.5, 3, 10):
        done = Simulation(model, [Source("a", load * model.knee, 2.5 * full)], seed=3).run(90 * full / 1000)
        assert done.goodput >= 0.9 * model.knee
        assert done.late.total() <= 0.01 * (done.good.total() + done.late.total())


def test_below_the_knee_nobody_is_refused() -> None:
    """At 80 % of the knee, with room for a few batches, every request is answered in time."""
    model = Model(2, 0.5)
    done = Simulation(model, [Source("a", 0.8 * model.knee, 100)], seed=7).run(4)
    assert (done.refused.total(), done.late.total()) == (0, 0)


@pytest.mark.parametrize("bound", [64, 2048])
def test_a_flooding_tenant_leaves_the_others_their_fair_share(bound: int) -> None:
    """One sends 20 times its share, three others 90 % of theirs: each of them gets ≥ 95 % of what it sends, in time."""
    model = Model(2, 0.5)
    share = model.knee / 4
    others = [Source(name, 0.9 * share, 200) for name in ("b", "c", "d")]
    done = Simulation(model, [Source("flood", 20 * share, 200), *others], seed=7, bound=bound).run(4)
    for other in others:
        sent = done.good[other.tenant] + done.late[other.tenant] + done.refused[other.tenant]
        assert done.good[other.tenant] >= 0.95 * sent
    assert done.goodput >= 0.95 * model.knee


def test_an_accident_is_forgotten() -> None:
    """A batch of 5 s among 4 ms ones shuts nobody out for long, though all ask for 100 ms."""
    model = Model(2, 0.5)
    subject = Simulation(model, [Source("a", 0.8 * model.knee, 100)], seed=7).run(1)
    for _ in range(3):
        subject.policy.estimate.observe(32, 5_000 * MS)
    subject.run(3)
    before = subject.good.total()
    subject.run(5)
    assert subject.good.total() - before >= 0.9 * 2 * 0.8 * model.knee
