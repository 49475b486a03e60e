"""Rounds as a load might have seen them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadtests.seen import Outcome, Round, both


def round_of(
    ours_ms: Iterable[float], echo_ms: Iterable[float] = (1.0,) * 100, cpu_us: tuple[float, float] = (300.0, 100.0)
) -> Round:
    """A round with these latencies, and this CPU for each request of the server and of the echo; late after 50 ms."""
    seen = both(0.05)
    for side, latencies, cpu in zip(seen, (ours_ms, echo_ms), cpu_us, strict=True):
        for ms in latencies:
            side.record(ms / 1e3, Outcome.OK)
        side.segments = [cpu / 1e6] * 5
        side.cpu = cpu / 1e6 * side.answered
    return seen


def rounds_of(*each: Sequence[float]) -> list[Round]:
    return [round_of(ours) for ours in each]
