"""Merging pieces and splitting outputs, for every datatype."""

from __future__ import annotations

import array as arrays
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.datatypes import DATATYPES, Buffer, decode_bytes, encode_bytes
from core.errors import InvalidRequest
from repository.records import TensorSpec
from tests.arrays import to_array
from tests.workers.samples import batch_of, rows
from workers.merge import merge, split
from workers.messages import Batch, Column, Member

SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
MEMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
KINDS = st.sampled_from(["bytes", "bytearray", "view"])


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, list[bytes]]:
    """A batch of one column of any datatype, and the raw bytes of each member."""
    name, shape, counts = draw(st.sampled_from(sorted(DATATYPES))), draw(SHAPES), draw(MEMBERS)
    each = int(np.prod(shape))
    raw = [draw(piece(name, count * each)) for count in counts]
    pieces = [_as(draw(KINDS), data) for data in raw]
    return Batch(1, True, [Member(count) for count in counts], [Column("t", name, shape, pieces)]), raw


def piece(datatype: str, elements: int) -> st.SearchStrategy[bytes]:
    size = DATATYPES[datatype].size
    if size:
        return st.binary(min_size=elements * size, max_size=elements * size)
    return st.lists(st.binary(max_size=5), min_size=elements, max_size=elements).map(encode_bytes)


def _as(kind: str, data: bytes) -> Buffer:
    if kind == "bytearray":
        return bytearray(data)
    if kind == "view":
        return memoryview(b"\x00" + data)[1:]  # off by one: not aligned to any element
    return data


def sent(array: np.ndarray[Any, Any], batch: Batch) -> list[bytes]:
    spec = TensorSpec("t", batch.inputs[0].datatype, (-1, *batch.inputs[0].shape))
    outputs = split([spec], [array], batch.members, True)
    shapes = [(member.rows, *batch.inputs[0].shape) for member in batch.members]
    assert [output.shape for (output,) in outputs] == shapes
    return [bytes(output.data) for (output,) in outputs]


@given(batches())
def test_every_member_gets_back_exactly_its_own_bytes(case: tuple[Batch, list[bytes]]) -> None:
    """merge, then split of the same array: the identity, for every datatype, shape, row count and kind of buffer."""
    batch, raw = case
    array = merge(batch)["t"]
    assert array.shape == (batch.rows, *batch.inputs[0].shape)
    assert array.flags.aligned
    if batch.inputs[0].datatype == "BOOL":
        raw = [bytes(byte != 0 for byte in data) for data in raw]
    assert sent(array, batch) == raw


@given(batches())
def test_merging_is_the_concatenation_of_each_alone(case: tuple[Batch, list[bytes]]) -> None:
    """Rows keep their order: members first to last, rows of each first to last."""
    batch, _ = case
    column = batch.inputs[0]
    alone = [
        merge(Batch(1, True, [member], [Column("t", column.datatype, column.shape, [piece])]))["t"]
        for member, piece in zip(batch.members, column.pieces, strict=True)
    ]
    together = merge(batch)["t"]
    assert together.dtype == alone[0].dtype
    assert together.tobytes() == np.concatenate(alone).tobytes() if together.dtype != object else True
    if together.dtype == object:
        assert together.tolist() == np.concatenate(alone).tolist()


def test_a_lone_piece_is_not_copied() -> None:
    data = bytes(rows(1, 2).tobytes())
    array = merge(Batch(1, True, [Member(2)], [Column("x", "FP32", (4,), [data])]))["x"]
    assert np.shares_memory(array, np.frombuffer(data, np.float32))
    assert not array.flags.writeable


def test_a_view_of_numbers_counts_by_its_bytes() -> None:
    """Arrays of numbers come as memoryviews of their own item size."""
    piece = cast(Buffer, memoryview(arrays.array("f", [1, 2, 3, 4])))
    merged = merge(Batch(1, True, [Member(1)], [Column("x", "FP32", (4,), [piece])]))["x"]
    assert merged.tolist() == [[1, 2, 3, 4]]


def test_outputs_are_views_of_the_models_array() -> None:
    array = rows(1, 2, 3)
    outputs = split([TensorSpec("y", "FP32", (-1, 4))], [array], [Member(1), Member(2)], True)
    array[2] = 9
    assert np.frombuffer(outputs[1][0].data, np.float32).tolist() == [2] * 4 + [9] * 4


def test_bool_bytes_other_than_0_and_1_are_true() -> None:
    batch = Batch(1, True, [Member(4)], [Column("b", "BOOL", (), [b"\x00\x01\x02\xff"])])
    array = merge(batch)["b"]
    assert array.tolist() == [False, True, True, True]
    assert array.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_bf16_and_fp16_are_what_numpy_knows_them_as() -> None:
    bf16 = merge(Batch(1, True, [Member(1)], [Column("b", "BF16", (2,), [b"\x80\x3f\x00\xc0"])]))["b"]
    assert bf16.dtype == ml_dtypes.bfloat16
    assert bf16.tolist() == [[1.0, -2.0]]
    fp16 = merge(Batch(1, True, [Member(1)], [Column("h", "FP16", (1,), [b"\x00\x3c"])]))["h"]
    assert fp16.tolist() == [[1.0]]


def test_a_lying_bytes_piece_cannot_shift_its_neighbours() -> None:
    """Two elements where one is due, one where two are due: together they would fit."""
    pieces: list[Buffer] = [encode_bytes([b"a", b"b"]), encode_bytes([b"c"])]
    lying = Batch(1, True, [Member(1), Member(2)], [Column("t", "BYTES", (), pieces)])
    with pytest.raises(InvalidRequest, match="'t'"):
        merge(lying)


@pytest.mark.parametrize("length", [0, 15, 17, 31])
def test_data_that_does_not_fill_its_shape_names_the_tensor(length: int) -> None:
    with pytest.raises(InvalidRequest, match=r"'x'.*shape"):
        merge(Batch(1, True, [Member(2)], [Column("x", "FP32", (4,), [bytes(length)])]))


def test_unbatched_tensors_pass_whole() -> None:
    batch = Batch(1, False, [Member(1)], [Column("x", "FP32", (2, 2), [rows(7).tobytes()])])
    array = merge(batch)["x"]
    assert array.tolist() == [[7, 7], [7, 7]]
    ((output,),) = split([TensorSpec("y", "FP32", (2, 2))], [array], batch.members, False)
    assert (output.shape, bytes(output.data)) == ((2, 2), array.tobytes())


def test_unbatched_bytes_and_scalars_pass_whole() -> None:
    batch = Batch(1, False, [Member(1)], [Column("t", "BYTES", (2, 1), [encode_bytes([b"a", b"bc"])])])
    assert merge(batch)["t"].tolist() == [[b"a"], [b"bc"]]
    scalar = Batch(1, False, [Member(1)], [Column("s", "INT64", (), [(5).to_bytes(8, "little")])])
    assert merge(scalar)["s"].tolist() == 5


def test_text_and_object_outputs_become_bytes() -> None:
    """A model may answer BYTES as numpy text, as objects of text, or of bytes."""
    spec, members = TensorSpec("t", "BYTES", (-1,)), [Member(1), Member(1)]
    for array in (np.array(["ä", "b"]), np.array(["ä", "b"], object), np.array(["ä".encode(), b"b"], object)):
        first, second = split([spec], [array], members, True)
        assert decode_bytes(first[0].data, 1) == ["ä".encode()]
        assert decode_bytes(second[0].data, 1) == [b"b"]


def test_a_strided_output_is_split_by_rows() -> None:
    """Neither transposed nor reversed arrays mix rows."""
    array = np.arange(12, dtype=np.float32).reshape(4, 3).T
    outputs = split([TensorSpec("y", "FP32", (-1, 4))], [array], [Member(1), Member(2)], True)
    datatype = DATATYPES["FP32"]
    got = [to_array(datatype, o.shape, o.data).tolist() for (o,) in outputs]
    assert got == [array[:1].tolist(), array[1:].tolist()]


def test_several_columns_and_outputs_keep_their_order() -> None:
    batch = batch_of(rows(1), rows(2))
    specs = [TensorSpec("b", "FP32", (-1, 4)), TensorSpec("a", "INT64", (-1,))]
    results = split(specs, [rows(1, 2), np.array([10, 20])], batch.members, True)
    assert [[output.name for output in result] for result in results] == [["b", "a"], ["b", "a"]]
    assert np.frombuffer(results[1][1].data, np.int64).tolist() == [20]
