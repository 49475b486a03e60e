"""What gateways and replicas say of themselves each second, over the broker.

`boot` names the host's boot and `sent` is the sender's monotonic clock in nanoseconds: among processes with an equal
boot the clocks are one; elsewhere the smallest (arrival - sent) of a sender is the offset between the two clocks
(`core/fleet.py`). Wall clocks decide nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

STARTING, READY, DRAINING, FAILED = "STARTING", "READY", "DRAINING", "FAILED"


class Beat(msgspec.Struct, kw_only=True, tag=True):
    sender: str
    """The instance: one process for its life."""
    boot: str
    sent: int
    host: str = ""
    pid: int = 0


class Share(msgspec.Struct, array_like=True):
    """One version at one gateway, of the last second. `demand`: rows asked for, refused ones included; `waiting`:
    rows queued; `oldest`: nanoseconds that the oldest has waited; `aboard`: batches in flight."""

    model: str
    version: int
    demand: int = 0
    waiting: int = 0
    oldest: int = 0
    aboard: int = 0


class GatewayBeat(Beat, kw_only=True, tag="gateway"):
    revision: int
    """Of the catalog that its routing table was built from."""
    ready: bool
    open: list[Share]
    """Every version that it may still send a batch of: open, or closed and not drained yet."""


class ReplicaBeat(Beat, kw_only=True, tag="replica"):
    model: str
    version: int
    attempt: int
    """Of the version record that it was started for."""
    state: str
    reason: str = ""
    """Of FAILED: why it does not serve, for people."""
    note: str = ""
    """Of READY: what the pusher should know."""
    signature: bytes = b""
    """Found by the load: `repository.records.Signature` in msgpack."""
    max_batch: int = 0
    device: str = "cpu"
    in_flight: int = 0
    """Batches taken from the broker and not answered."""
    queue_wait: int = 0
    """Nanoseconds from arrival to the model, the mean of the last second."""
    busy: float = 0.0
    """Share of the last second that the model ran, 0 to 1."""
    warmup: list[tuple[int, float]] = []
    """(rows, seconds) of the warm-up runs."""
    samples: list[tuple[int, float]] = []
    """(rows, seconds) of executions in the last second, at most 16."""


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[GatewayBeat | ReplicaBeat] = msgspec.msgpack.Decoder(GatewayBeat | ReplicaBeat)


def encode(beat: GatewayBeat | ReplicaBeat) -> bytes:
    return _encoder.encode(beat)


def decode(body: bytes) -> GatewayBeat | ReplicaBeat:
    """Raises msgspec.DecodeError (a ValueError) for what is no beat."""
    return _decoder.decode(body)


@cache
def boot_id() -> str:
    """Equal for all processes of this host until it boots again."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
