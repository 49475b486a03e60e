"""How long the replicas of a version may take to end, each bound inside the next. Pure; in seconds.

    drain: what was taken is answered ─► stop: the model is freed, else Serve ends the process ─► gone: Serve shows it

What was accepted may take as long as its deadlines allow; of requests that name none that is the version's own. Who
asks for longer than that and is still running when it is over goes back to the broker, for another replica.
"""

from __future__ import annotations

from typing import NamedTuple

STOP_MARGIN_S = 7.0
"""Beyond its drain, for a replica's end: Serve's own two seconds, and the model's."""
GONE_MARGIN_S = 10.0
"""For Serve to notice, on a busy machine."""


class Bounds(NamedTuple):
    drain: float
    stop: float
    gone: float


def bounds(default_deadline_ms: int, drain_timeout_s: float) -> Bounds:
    """Those of a version with that default deadline; `drain_timeout_s` is the least."""
    drain = max(drain_timeout_s, default_deadline_ms / 1000)
    return Bounds(drain, drain + STOP_MARGIN_S, drain + STOP_MARGIN_S + GONE_MARGIN_S)
