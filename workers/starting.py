"""What is said on a child's socket before its first batch: `Start` in, `Started` or `Refused` out.

Each is four bytes of length and msgpack, like everything that crosses a process boundary; nothing is unpickled.
"""

from __future__ import annotations

import msgspec

from repository.records import Signature, Version

MAX_ANSWER = 4 << 20
"""Bytes of a child's answer: more than any signature needs, little for a server to hold."""


class Start(msgspec.Struct, tag="start"):
    """`artifact` and `example` ('' = none) are files that the child can read. `max_reply`: bytes of a frame."""

    version: Version
    artifact: str
    example: str
    threads: int
    device: str
    default_max_batch: int
    max_reply: int


class Started(msgspec.Struct, tag="started"):
    """`samples`: (rows, seconds) of the warm-up. `note`: what the pusher should know, '' if nothing."""

    signature: Signature
    max_batch: int
    samples: list[tuple[int, float]]
    note: str = ""


class Refused(msgspec.Struct, tag="refused"):
    """The version cannot be served."""

    reason: str


Answer = Started | Refused

_encoder = msgspec.msgpack.Encoder()
_start = msgspec.msgpack.Decoder(Start)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Start | Answer) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "little") + body


def decode_start(body: bytes) -> Start:
    return _start.decode(body)


def decode_answer(body: bytes) -> Answer:
    """Raises ValueError for what is neither."""
    return _answer.decode(body)
