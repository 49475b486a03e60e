"""What a message must be to be run: anything else would be merged with its neighbours and shift their rows."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.express import Delivered, Properties
from repository.records import TensorSpec
from tests.workers.deliveries import delivery_of, message
from tests.workers.samples import batch_of, rows, version
from workers.delivery import Sender, read, sender_of
from workers.messages import Batch, Column, Member, Reply, Timing, encode

ONE = rows(1).tobytes()


def lying(**changes: Any) -> Batch:
    return msgspec.structs.replace(batch_of(rows(1), rows(2), number=50), **changes)


def test_an_honest_batch_is_taken() -> None:
    delivery = delivery_of(lying(), traceparent="t")
    assert (delivery.home, delivery.reply_to, delivery.gateway, delivery.boot) == (50, "reply.g", "g", "b")
    assert (delivery.attempt, delivery.expiration_ms, delivery.tag) == (0, 1000, 9)
    assert delivery.headers["traceparent"] == "t"


LIES: dict[str, Batch] = {
    "no members": lying(members=[]),
    "no rows": lying(members=[Member(0), Member(2)]),
    "a deadline before all time": lying(members=[Member(1, -1), Member(1)]),
    "a piece too few": lying(inputs=[Column("x", "FP32", (4,), [ONE])]),
    "rows that belong to its neighbour": lying(inputs=[Column("x", "FP32", (4,), [b"", ONE * 2])]),
    "another input": lying(inputs=[Column("z", "FP32", (4,), [ONE, ONE])]),
    "another datatype": lying(inputs=[Column("x", "PICKLE", (4,), [ONE, ONE])]),
    "the same input twice": lying(inputs=[Column("x", "FP32", (4,), [ONE, ONE])] * 2),
    "no input": lying(inputs=[]),
    "a negative size": lying(inputs=[Column("x", "FP32", (-4,), [ONE, ONE])]),
    "a size beyond memory": lying(inputs=[Column("x", "FP32", (1 << 62, 4), [ONE, ONE])]),
    "another rank that its bytes would fill": lying(inputs=[Column("x", "FP32", (2, 2), [ONE, ONE])]),
    "another width that its bytes would fill": lying(
        members=[Member(2), Member(4)], inputs=[Column("x", "FP32", (2,), [ONE, ONE * 2])]
    ),
    "sizes beyond all": lying(inputs=[Column("x", "FP32", (1 << 62,) * 20_000, [ONE, ONE])]),
    "rows beyond all": lying(members=[Member(1 << 62), Member(1 << 62)]),
    "no batching": lying(batched=False),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_batch_is_refused(lie: str) -> None:
    """Though it says who sent it, who can then be told."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message is for the record
        read(message(LIES[lie]), version(), suspect=False)
    sender = sender_of(message(LIES[lie]))
    assert sender == (Sender("reply.g", 50, 2) if LIES[lie].members else None)


def test_sizes_are_not_multiplied_before_they_are_known_to_fit() -> None:
    """So many take minutes, in which the replica would answer nobody."""
    one = message(LIES["sizes beyond all"])
    begun = time.process_time()
    with pytest.raises(ValueError, match="has not the shape"):
        read(one, version(), suspect=False)
    assert time.process_time() - begun < 0.2


VARIABLE = version(inputs=[TensorSpec("x", "UINT8", (-1, -1, 2)), TensorSpec("t", "BYTES", (-1, -1))])


def of_any_width(width: int, rows: int, *, text: int = 0) -> Batch:
    """One member whose tensors are empty where a width is 0."""
    x, t = Column("x", "UINT8", (width, 2), [bytes(2 * width)]), Column("t", "BYTES", (text,), [b""])
    return Batch(1, True, [Member(rows)], [x, t])


def test_a_variable_size_may_be_any_that_memory_has() -> None:
    for width in (0, 3):
        assert read(message(of_any_width(width, 1)), VARIABLE, suspect=False).batch.rows == 1
    for lie in (of_any_width(0, 1, text=1 << 31), of_any_width(0, 1, text=-1), of_any_width(0, 1 << 21)):
        with pytest.raises(ValueError, match=r"has not the shape|rows"):
            read(message(lie), VARIABLE, suspect=False)


@pytest.mark.parametrize(
    ("properties", "cause"),
    [
        ({"correlation_id": "51"}, "correlation id"),
        ({"correlation_id": ""}, "correlation id"),
        ({"reply_to": ""}, "reply queue"),
        ({"reply_to": "infer.m.1"}, "reply queue"),
    ],
)
def test_one_that_cannot_be_answered_is_refused(properties: dict[str, Any], cause: str) -> None:
    """A reply queue that is none least of all: the answer would come back as a batch."""
    one = message(lying())
    for name, value in properties.items():
        one = one._replace(properties=one.properties._replace(**{name: value}))
    with pytest.raises(ValueError, match=cause):
        read(one, version(), suspect=False)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"attempt": 1},
        {"member": 0},
        {"attempt": 0, "member": 0},
        {"attempt": 4, "member": 0},
        {"attempt": 1, "member": -1},
        {"attempt": "1", "member": 0},
        {"attempt": True, "member": 0},
    ],
)
def test_a_suspect_must_say_which_try_of_whom_it_is(headers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not a number from"):
        read(message(batch_of(rows(1)), **headers), version(), suspect=True)


def test_a_suspect_is_one_member() -> None:
    with pytest.raises(ValueError, match="one member by itself"):
        read(message(lying(), attempt=1, member=0), version(), suspect=True)


def test_a_model_that_does_not_batch_takes_one_whole_tensor() -> None:
    made = version(max_batch=0, inputs=[TensorSpec("x", "FP32", (2, 4))])
    one = Batch(1, False, [Member(1)], [Column("x", "FP32", (2, 4), [ONE * 2])])
    assert read(message(one), made, suspect=False).batch.members == [Member(1)]
    two = msgspec.structs.replace(one, members=[Member(1)] * 2)
    with pytest.raises(ValueError, match="2 members"):
        read(message(two), made, suspect=False)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_garbage_raises_nothing_but_value_errors(tail: bytes, at: int, value: int) -> None:
    """Random bytes, and honest frames with one byte changed."""
    whole = bytearray(b"".join(encode(lying()))[4:])
    whole[at % len(whole)] = value
    properties = Properties(correlation_id="50", reply_to="reply.g")
    for body in (tail, bytes(whole), bytes(whole[:at]) + tail, b"".join(encode(Reply(50, [], Timing())))[4:]):
        one = Delivered("c", 1, False, "", "infer", properties, body)
        sender_of(one)
        try:
            read(one, version(), suspect=False)
        except ValueError:
            continue
