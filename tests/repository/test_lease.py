"""Leases: one holder at a time by nobody's wall clock, and a successor for one that falls silent."""

from __future__ import annotations

import asyncio

import pytest

from core.errors import Unavailable
from repository.lease import Sighting, Tenure, may_take, sighted
from repository.records import Lease
from repository.store import Store

TTL = 10.0


def a_lease(owner: str, revision: int) -> Lease:
    return Lease(name="reconciler", owner=owner, revision=revision)


def test_the_time_counts_from_the_first_sight_of_a_revision() -> None:
    """Every movement begins it anew; so does a record that appears or goes."""
    first = sighted(None, a_lease("one", 1), 5.0)
    assert first == Sighting(1, 5.0)
    assert sighted(first, a_lease("one", 1), 9.0) == first
    assert sighted(first, a_lease("one", 2), 9.0) == Sighting(2, 9.0)
    assert sighted(first, None, 9.0) == Sighting(0, 9.0)


@pytest.mark.parametrize(
    ("lease", "seen_since", "may"),
    [
        (None, 100.0, True),
        (a_lease("", 3), 100.0, True),
        (a_lease("me", 3), 100.0, True),
        (a_lease("other", 3), 100.0, False),
        (a_lease("other", 3), 90.1, False),
        (a_lease("other", 3), 90.0, True),
    ],
)
def test_who_may_take_a_lease(lease: Lease | None, seen_since: float, may: bool) -> None:
    """A free one, one's own, and one that has stood still for its whole time, seen at 100 s."""
    sighting = Sighting(0 if lease is None else lease.revision, seen_since)
    assert may_take(lease, "me", sighting, 100.0, TTL) is may


class Watch:
    """A clock of its own for each candidate."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def candidates(store: Store) -> tuple[Tenure, Watch, Tenure, Watch]:
    """Two, whose clocks have nothing in common but their speed."""
    one, two = Watch(1000.0), Watch(5.0)
    return Tenure(store, "reconciler", TTL, now=one), one, Tenure(store, "reconciler", TTL, now=two), two


async def test_one_of_two_holds_it_as_long_as_it_renews(store: Store) -> None:
    """However long; the other is told no each time."""
    first, clock, second, other_clock = candidates(store)
    assert await first.acquire()
    for _ in range(5):
        assert not await second.acquire()
        clock.now += 6.0
        other_clock.now += 6.0
        assert await first.acquire()
    assert first.held
    assert not second.held


async def test_a_silent_holder_counts_itself_out_before_it_is_succeeded(store: Store) -> None:
    """The successor waits the whole time by its own clock; the holder stops at three quarters of it by its own."""
    first, clock, second, other_clock = candidates(store)
    await first.acquire()
    assert not await second.acquire()
    clock.now += 7.6
    other_clock.now += 9.9
    assert not first.held
    assert not await second.acquire()
    other_clock.now += 0.2
    assert await second.acquire()
    assert not await first.acquire()


async def test_two_that_see_it_expire_do_not_both_take_it(store: Store) -> None:
    """The one that writes first wins."""
    first, _, second, other_clock = candidates(store)
    third = Tenure(store, "reconciler", TTL, now=other_clock)
    await first.acquire()
    for waiter in (second, third):
        assert not await waiter.acquire()
    other_clock.now += TTL
    assert sorted(await asyncio.gather(second.acquire(), third.acquire())) == [False, True]


async def test_a_released_lease_is_free_at_once(store: Store) -> None:
    """Without waiting; releasing what one does not hold changes nothing."""
    first, _, second, _ = candidates(store)
    await first.acquire()
    assert not await second.acquire()
    await second.release()
    assert not await second.acquire()
    await first.release()
    assert not first.held
    assert await second.acquire()


async def test_waiting_ends_with_the_lease_and_keeping_with_its_loss(store: Store) -> None:
    """By the real clock: the holder renews itself; once it stops the waiter follows, and the holder knows."""
    first, second = Tenure(store, "reconciler", 2.0), Tenure(store, "reconciler", 2.0)
    await first.wait()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.wait())
    await asyncio.sleep(4.0)  # two whole times: nobody takes it while it is renewed
    assert first.held
    assert not waiting.done()
    keeping.cancel()
    await asyncio.wait_for(waiting, 10)
    assert second.held
    await asyncio.wait_for(first.keep(), 10)
    assert not first.held


async def test_without_the_store_a_holder_counts_itself_out(store: Store) -> None:
    """acquire says that it is away; keep ends in time."""
    tenure = Tenure(store, "reconciler", 0.3)
    assert await tenure.acquire()
    await store.close()
    with pytest.raises(Unavailable):
        await tenure.acquire()
    await asyncio.wait_for(tenure.keep(), 10)
    assert not tenure.held
