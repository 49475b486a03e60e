"""Frames out of a stream, however it is cut; and what a stranger's reply must be to be believed."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.datatypes import encode_bytes
from repository.records import TensorSpec
from tests.workers.samples import batch_of, rows, version
from workers.conformity import Conformity
from workers.frames import Frames
from workers.messages import Failure, Output, Reply, Timing, decode, encode


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(1, 15), min_size=1, max_size=30))
def test_frames_come_out_as_they_went_in(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    frames, out, at = Frames(20), [], 0
    for cut in cuts * (len(stream) // sum(cuts) + 1):
        if stream[at : at + cut]:
            out += [bytes(frame) for frame in frames.feed(stream[at : at + cut])]
        at += cut
    assert out == bodies


def test_a_frame_too_long_is_refused_before_it_comes() -> None:
    frames = Frames(1000)
    with pytest.raises(ValueError, match="1001"):
        frames.feed((1001).to_bytes(4, "little"))


def test_the_limit_itself_is_allowed() -> None:
    assert len(Frames(1000).feed((1000).to_bytes(4, "little") + bytes(1000))[0]) == 1000


def test_large_frames_in_small_pieces_are_not_copied_over_and_over() -> None:
    """64 MiB in pieces of 4 KiB: copied once. Joining at each piece would take minutes."""
    frames, piece, count = Frames(1 << 27), bytes(4096), 1 << 14
    begun = time.process_time()
    frames.feed((len(piece) * count).to_bytes(4, "little"))
    out = [frame for _ in range(count) for frame in frames.feed(piece)]
    assert [len(frame) for frame in out] == [len(piece) * count]
    assert time.process_time() - begun < 5


BATCH = batch_of(rows(1), rows(2, 3))


def good() -> Reply:
    return Reply(
        1,
        [
            [Output("y", "FP32", (1, 4), memoryview(rows(1).tobytes()))],
            [Output("y", "FP32", (2, 4), memoryview(rows(2, 3).tobytes()))],
        ],
        Timing(),
    )


def first(reply: Reply) -> Output:
    result = reply.results[0]
    assert isinstance(result, list)
    return result[0]


def test_an_honest_reply_passes() -> None:
    """Twice: the second time it is remembered."""
    conformity = Conformity(version())
    conformity.check(BATCH, good())
    conformity.check(BATCH, good())
    failed = good()
    failed.results[1] = Failure("model_failed", "no")
    conformity.check(BATCH, failed)


def _drop(reply: Reply) -> None:
    del reply.results[0]


def _extra(reply: Reply) -> None:
    reply.results[0] = [first(reply), first(reply)]


def _none(reply: Reply) -> None:
    reply.results[0] = []


def _set(**changes: object) -> Callable[[Reply], None]:
    def change(reply: Reply) -> None:
        reply.results[0] = [msgspec.structs.replace(first(reply), **changes)]

    return change


LIES: dict[str, Callable[[Reply], None]] = {
    "a member too few": _drop,
    "an output too many": _extra,
    "no output": _none,
    "another name": _set(name="z"),
    "another datatype": _set(datatype="INT32"),
    "an unknown datatype": _set(datatype="PICKLE"),
    "another rank": _set(shape=(4,)),
    "other rows": _set(shape=(2, 4), data=bytes(32)),
    "other columns": _set(shape=(1, 8), data=bytes(32)),
    "negative sizes": _set(shape=(-1, -4)),
    "huge sizes": _set(shape=(1 << 62, 4)),
    "less data": _set(data=bytes(8)),
    "more data": _set(data=bytes(20)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_reply_is_caught(lie: str) -> None:
    """Also after the honest one has been remembered."""
    conformity = Conformity(version())
    conformity.check(BATCH, good())
    reply = good()
    LIES[lie](reply)
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the log
        conformity.check(BATCH, reply)


@pytest.mark.parametrize("data", [b"", b"\x05\x00\x00\x00a", encode_bytes([b"a", b"b"]), b"\xff\xff\xff\xff"])
def test_elements_that_lie_are_caught(data: bytes) -> None:
    conformity = Conformity(version(outputs=[TensorSpec("y", "BYTES", (-1,))]))
    reply = Reply(
        1, [[Output("y", "BYTES", (1,), data)], [Output("y", "BYTES", (2,), encode_bytes([b"", b"x"]))]], Timing()
    )
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the log
        conformity.check(BATCH, reply)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_garbage_raises_nothing_but_value_errors(tail: bytes, at: int, value: int) -> None:
    """Random bytes, and honest frames with one byte changed."""
    whole = bytearray(b"".join(encode(good()))[4:])
    whole[at % len(whole)] = value
    for frame in (tail, bytes(whole), bytes(whole[:at]) + tail):
        try:
            message = decode(frame)
            if isinstance(message, Reply):
                Conformity(version()).check(BATCH, message)
        except ValueError:
            continue
