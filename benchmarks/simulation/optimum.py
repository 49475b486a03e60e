"""The most that can be answered in time, by brute force: every partition of a short trace into batches.

The model, exactly: one server; all arrivals known beforehand; a batch starts when the server is free and its members
have all arrived, takes τ₀ + α·b for b ≤ B rows, and is never interrupted; who is not served in time is not served at
all. Goodput is the rows whose batch ends by their deadline.

Of two schedules that serve the same requests in time the one that is free earlier can do whatever the other can, so it
is enough to know, for each set of requests, the earliest time at which the server can have served exactly these. All
3ⁿ pairs of a set and a next batch are tried. The hop is none: this bounds every algorithm from above.
"""

from __future__ import annotations

from benchmarks.simulation.arrivals import Request, Trace
from benchmarks.simulation.clock import SECOND
from benchmarks.simulation.device import Device

LARGEST = 12
NEVER = 1 << 62


def best(trace: Trace, device: Device) -> int:
    """Rows that a clairvoyant answers in time, at most. Raises ValueError for more than LARGEST requests."""
    if len(trace) > LARGEST:
        raise ValueError(f"{len(trace)} requests are too many to try everything: at most {LARGEST}")
    batches = _batches(trace, device)
    everyone = (1 << len(trace)) - 1
    free = [NEVER] * (everyone + 1)
    free[0] = 0
    for served in range(everyone + 1):
        since = free[served]
        if since == NEVER:
            continue
        rest = everyone & ~served
        batch = rest
        while batch:
            ready, took, due = batches[batch]
            end = (since if since > ready else ready) + took
            if end <= due and end < free[served | batch]:
                free[served | batch] = end
            batch = (batch - 1) & rest
    return max(_rows(trace, served) for served in range(everyone + 1) if free[served] < NEVER)


def _batches(trace: Trace, device: Device) -> list[tuple[int, int, int]]:
    """For each set: when all have arrived, how long it takes, its tightest deadline (0 where it is too large)."""
    made = [(0, 0, NEVER)]
    for members in range(1, 1 << len(trace)):
        low = (members & -members).bit_length() - 1
        ready, _, due = made[members & (members - 1)]
        request: Request = trace[low]
        rows = _rows(trace, members)
        took = round((device.fixed_s + device.row_s * rows) * SECOND)
        tightest = min(due, request.due or NEVER)
        made.append((max(ready, request.at), took, tightest if rows <= device.max_batch else 0))
    return made


def _rows(trace: Trace, members: int) -> int:
    return sum(request.rows for at, request in enumerate(trace) if members >> at & 1)
