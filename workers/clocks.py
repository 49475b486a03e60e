"""Deadlines of other hosts. Pure: all in monotonic nanoseconds.

On one host (equal boot) the clock is one. Of another host the offset is known from its gateway's beats. Of a gateway
never heard, all that is known is how much of its longest budget was left when it sent the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.beats import boot_id
from core.fleet import Fleet
from workers.messages import Member

MILLISECOND = 1_000_000


def shift_of(
    members: Iterable[Member], sender: str, boot: str, expiration_ms: int | None, fleet: Fleet, now: int
) -> int | None:
    """What to add to the members' deadlines to have them in this host's clock; None where nothing tells."""
    if boot == boot_id():
        return 0
    offset = fleet.offset(sender)
    if offset is not None:
        return offset
    latest = max((member.deadline for member in members), default=0)
    if expiration_ms is None or not latest:
        return None
    return now + expiration_ms * MILLISECOND - latest


def localise(members: Iterable[Member], shift: int | None) -> None:
    """Put the deadlines into this host's clock; without a shift there are none."""
    for member in members:
        if member.deadline:
            member.deadline = 0 if shift is None else max(1, member.deadline + shift)


def remaining_ms(deadline: int, now: int) -> int:
    """Milliseconds left, rounded up; 0 or less when it is over."""
    return -((now - deadline) // MILLISECOND)
