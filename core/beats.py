"""What gateways and replicas say of themselves each second, over the broker.

`boot` names the host's boot and `sent` is the sender's monotonic clock in nanoseconds: among processes with an equal
boot the clocks are one; elsewhere the smallest (arrival - sent) of a sender is the offset between the two clocks
(`core/fleet.py`). Wall clocks decide nothing.

Whoever may publish at the broker may say anything: what cannot be (no number, a share above 1, rows below 1, names
that fill the memory of who hears them) is no beat, so that those who reckon with beats need not ask.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

LONGEST_NAME, LONGEST_TEXT = 256, 4096
"""Characters: of what is called so, and of what is said to people."""
_MOST = 1 << 53
"""What a count can be at most: JSON tells it exactly."""

Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Count = Annotated[int, Meta(ge=0, le=_MOST)]
Nanoseconds = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Part = Annotated[float, Meta(ge=0, le=1)]
Run = tuple[Annotated[int, Meta(ge=1, le=1 << 31)], Annotated[float, Meta(ge=0, le=1e6)]]
"""(rows, seconds) of one execution."""
Runs = Annotated[list[Run], Meta(max_length=128)]

STARTING, READY, DRAINING, FAILED = "STARTING", "READY", "DRAINING", "FAILED"


class Beat(msgspec.Struct, kw_only=True, tag=True):
    sender: Name
    """The instance: one process for its life."""
    boot: Name
    sent: Nanoseconds
    host: Name = ""
    pid: Count = 0


class Share(msgspec.Struct, array_like=True):
    """One version at one gateway, of the last second. `demand`: rows asked for, refused ones included; `waiting`:
    rows queued; `oldest`: nanoseconds that the oldest has waited; `aboard`: batches in flight."""

    model: Name
    version: Count
    demand: Count = 0
    waiting: Count = 0
    oldest: Nanoseconds = 0
    aboard: Count = 0


class GatewayBeat(Beat, kw_only=True, tag="gateway"):
    revision: Count
    """Of the catalog that its routing table was built from."""
    ready: bool
    open: Annotated[list[Share], Meta(max_length=1 << 14)]
    """Every version that it may still send a batch of: open, or closed and not drained yet."""


class ReplicaBeat(Beat, kw_only=True, tag="replica"):
    model: Name
    version: Count
    attempt: Count
    """Of the version record that it was started for."""
    state: Name
    reason: Text = ""
    """Of FAILED: why it does not serve, for people."""
    note: Text = ""
    """Of READY: what the pusher should know."""
    signature: bytes = b""
    """Found by the load: `repository.records.Signature` in msgpack."""
    max_batch: Annotated[int, Meta(ge=-1, le=1 << 31)] = 0
    device: Name = "cpu"
    in_flight: Count = 0
    """Batches taken from the broker and not answered."""
    queue_wait: Nanoseconds = 0
    """Nanoseconds from arrival to the model, the mean of the last second."""
    busy: Part = 0.0
    """Share of the last second that the model ran, 0 to 1."""
    warmup: Runs = []
    """Of the warm-up."""
    samples: Runs = []
    """Of the last second, at most 16."""


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[GatewayBeat | ReplicaBeat] = msgspec.msgpack.Decoder(GatewayBeat | ReplicaBeat)


def encode(beat: GatewayBeat | ReplicaBeat) -> bytes:
    return _encoder.encode(beat)


def decode(body: bytes) -> GatewayBeat | ReplicaBeat:
    """Raises msgspec.DecodeError (a ValueError) for what is no beat, or says what cannot be."""
    return _decoder.decode(body)


@cache
def boot_id() -> str:
    """Equal for all processes of this host until it boots again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
