"""Deadlines of other hosts, in this one's clock."""

from __future__ import annotations

from core.beats import GatewayBeat, boot_id
from core.fleet import Fleet
from workers.clocks import MILLISECOND, localise, remaining_ms, shift_of
from workers.messages import Member

SECOND = 10**9


def heard(sent: int, now: int) -> Fleet:
    fleet = Fleet()
    fleet.hear(GatewayBeat(sender="g", boot="other", sent=sent, revision=1, ready=True, open=[]), now)
    return fleet


def test_on_one_host_the_clock_is_one() -> None:
    """Whatever the beats or the expiration say."""
    assert shift_of([Member(1, 5)], "g", boot_id(), 1, heard(0, 77 * SECOND), 9) == 0


def test_of_another_host_by_the_quickest_beat() -> None:
    """Its clock is 100 s behind; beats took 30 and 10 ms."""
    fleet = heard(sent=0, now=100 * SECOND + 30 * MILLISECOND)
    fleet.hear(
        GatewayBeat(sender="g", boot="other", sent=SECOND, revision=1, ready=True, open=[]),
        101 * SECOND + 10 * MILLISECOND,
    )
    shift = shift_of([], "g", "other", None, fleet, 0)
    assert shift == 100 * SECOND + 10 * MILLISECOND
    members = [Member(1, 7 * SECOND), Member(1, 0), Member(1, -200 * SECOND)]
    localise(members, shift)
    assert [member.deadline for member in members] == [107 * SECOND + 10 * MILLISECOND, 0, 1]


def test_of_a_gateway_never_heard_by_what_its_longest_member_has_left() -> None:
    members = [Member(1, 5 * SECOND), Member(1, 3 * SECOND), Member(1, 0)]
    shift = shift_of(members, "h", "other", 2000, heard(0, 0), 1000 * SECOND)
    localise(members, shift)
    assert [member.deadline for member in members] == [1002 * SECOND, 1000 * SECOND, 0]


def test_where_nothing_tells_there_is_no_deadline() -> None:
    """Rather than one of another clock."""
    members = [Member(1, 5 * SECOND)]
    shift = shift_of(members, "h", "other", None, Fleet(), 7)
    assert shift is None
    localise(members, shift)
    assert members[0].deadline == 0


def test_what_is_left_is_rounded_up() -> None:
    assert [remaining_ms(10 * MILLISECOND, now) for now in (0, 1, 9 * MILLISECOND + 1)] == [10, 10, 1]
    assert remaining_ms(10 * MILLISECOND, 10 * MILLISECOND) == 0
    assert remaining_ms(10 * MILLISECOND, 12 * MILLISECOND) == -2
