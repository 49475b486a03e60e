"""What is a beat: those that are sent are, and nothing that whoever hears them could not reckon with."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from core.beats import LONGEST_NAME, LONGEST_TEXT, GatewayBeat, ReplicaBeat, Share, decode, encode

REPLICA = ReplicaBeat(
    sender="r",
    boot="b",
    sent=1,
    host="h",
    pid=2,
    model="m",
    version=1,
    attempt=3,
    state="FAILED",
    reason="x" * LONGEST_TEXT,
    note="é" * LONGEST_TEXT,
    max_batch=-1,
    device="d" * LONGEST_NAME,
    in_flight=4,
    queue_wait=5,
    busy=1.0,
    warmup=[(1, 0.0), (64, 30.5)],
    samples=[(1, 0.001)] * 16,
)
GATEWAY = GatewayBeat(sender="g", boot="b", sent=0, revision=7, ready=True, open=[Share("m", 1, 10, 2, 10**12, 3)])


def changed(beat: Any, **changes: Any) -> Any:
    return decode(encode(msgspec.structs.replace(beat, **changes)))


def test_what_is_sent_is_heard() -> None:
    """Numbers at their limits, and whole ones where a fraction may stand."""
    assert decode(encode(REPLICA)) == REPLICA
    assert decode(encode(GATEWAY)) == GATEWAY
    assert changed(REPLICA, busy=0).busy == 0.0


WRONG = [math.nan, math.inf, -math.inf, -1, -1e-9]


@pytest.mark.parametrize("number", [*WRONG, 1.001, 2**64 - 1])
def test_a_share_is_from_0_to_1(number: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        changed(REPLICA, busy=number)


@pytest.mark.parametrize("run", [*((1, number) for number in WRONG), (1, 1e300), (0, 1.0), (-1, 1.0), (2**64 - 1, 1.0)])
@pytest.mark.parametrize("runs", ["warmup", "samples"])
def test_a_run_has_rows_and_takes_time(runs: str, run: tuple[int, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        changed(REPLICA, **{runs: [(1, 0.5), run]})


@pytest.mark.parametrize("number", [-1, 2**64 - 1])
@pytest.mark.parametrize("name", ["sent", "pid", "version", "attempt", "in_flight", "queue_wait"])
def test_a_count_is_one(name: str, number: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        changed(REPLICA, **{name: number})


@pytest.mark.parametrize("name", ["version", "demand", "waiting", "oldest", "aboard"])
def test_a_gateways_counts_are_some(name: str) -> None:
    share = msgspec.structs.replace(GATEWAY.open[0], **{name: -1})
    with pytest.raises(msgspec.ValidationError):
        changed(GATEWAY, open=[share])
    with pytest.raises(msgspec.ValidationError):
        changed(GATEWAY, revision=-1)


@pytest.mark.parametrize("name", ["sender", "boot", "host", "model", "state", "device", "reason", "note"])
def test_nobody_is_called_at_length(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        changed(REPLICA, **{name: "x" * (LONGEST_TEXT + 1)})


@pytest.mark.parametrize(
    "changes", [{"warmup": [(1, 0.1)] * 1000}, {"samples": [(1, 0.1)] * 1000}], ids=["warmup", "samples"]
)
def test_lists_are_short(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        changed(REPLICA, **changes)
    with pytest.raises(msgspec.ValidationError):
        changed(GATEWAY, open=[Share("m", 1)] * 20_000)
