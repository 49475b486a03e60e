"""The codec: what is written is what is read, and what is broken is said to be."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from penstock import wire
from penstock.errors import InvalidInput, UnexpectedAnswer

from core.datatypes import DATATYPES
from core.datatypes import to_wire as server_to_wire
from tests.arrays import to_array

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def arrays_of(name: str) -> st.SearchStrategy[wire.Array]:
    if name == "BYTES":
        return npst.arrays(object, SHAPES, elements=st.binary(max_size=9), fill=st.nothing())
    if name == "BF16":
        return npst.arrays(np.uint16, SHAPES).map(lambda bits: bits.view(ml_dtypes.bfloat16))
    return npst.arrays(wire.FIXED[name], SHAPES)


anything = st.sampled_from(sorted(DATATYPES)).flatmap(lambda name: st.tuples(st.just(name), arrays_of(name)))


def same(left: wire.Array, right: wire.Array) -> bool:
    """Equal to the bit: NaN payloads too."""
    if left.dtype.kind == "O":
        return left.shape == right.shape and left.reshape(-1).tolist() == right.reshape(-1).tolist()
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def test_every_datatype_of_the_protocol_is_known() -> None:
    """The client knows the server's table, and the same numpy dtypes for it."""
    assert {*wire.FIXED, "BYTES"} == set(DATATYPES)
    assert all(wire.FIXED[name] == row.numpy for name, row in DATATYPES.items() if row.size)
    assert {name for name, row in DATATYPES.items() if not row.json} == wire.NOT_IN_JSON


@given(anything)
def test_tensors_survive_the_round_trip(case: tuple[str, wire.Array]) -> None:
    """Client to server and back, for every datatype and shape, zero sizes and NaN included."""
    name, array = case
    assert wire.datatype_of(array) == name
    sent = bytes(wire.to_wire(name, array))
    assert same(to_array(DATATYPES[name], array.shape, sent), array)
    back = bytes(server_to_wire(DATATYPES[name], array))
    assert same(wire.from_wire(name, array.shape, memoryview(back)), array)


@given(anything)
def test_what_is_received_is_the_callers_own(case: tuple[str, wire.Array]) -> None:
    """Arrays of an answer can be written to."""
    name, array = case
    found = wire.from_wire(name, array.shape, memoryview(bytes(wire.to_wire(name, array))))
    assert found.flags.writeable


@given(st.lists(anything, min_size=1, max_size=4))
def test_requests_can_be_read_back(cases: list[tuple[str, wire.Array]]) -> None:
    """Several tensors in one body are told apart by their sizes."""
    inputs = {f"t{place}": array for place, (_, array) in enumerate(cases)}
    body, headers = wire.encode(inputs, ["a"], {"priority": 1})
    cut = int(headers[wire.HEADER_LENGTH])
    head = json.loads(body[:cut])
    assert head["parameters"] == {"binary_data_output": True, "priority": 1}
    assert head["outputs"] == [{"name": "a"}]
    for tensor, (name, array) in zip(head["inputs"], cases, strict=True):
        size = tensor["parameters"]["binary_data_size"]
        assert same(wire.from_wire(name, tensor["shape"], memoryview(body)[cut : cut + size]), array)
        cut += size
    assert cut == len(body)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<f4").reshape(3, 4)[:, ::2],
        np.arange(6, dtype=">i8"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_strides_and_byte_order_are_straightened(array: wire.Array) -> None:
    """Views, columns first and big-endian arrays travel row by row, little-endian."""
    name = wire.datatype_of(array)
    assert (wire.from_wire(name, array.shape, memoryview(bytes(wire.to_wire(name, array)))) == array).all()


def test_text_becomes_utf8() -> None:
    """Text arrays of any numpy kind are BYTES; what is neither text nor bytes is refused."""
    assert bytes(wire.to_wire("BYTES", np.array(["ä", "b"]))) == b"\x02\x00\x00\x00\xc3\xa4\x01\x00\x00\x00b"
    with pytest.raises(InvalidInput, match="text or bytes, not int"):
        wire.to_wire("BYTES", np.array([1], dtype=object))


def test_dtypes_without_a_name_are_refused() -> None:
    """Complex numbers and dates have no V2 datatype."""
    for array in (np.zeros(1, complex), np.zeros(1, "M8[s]")):
        with pytest.raises(InvalidInput, match="no datatype for"):
            wire.datatype_of(array)


def answer(*tensors: dict[str, Any], blobs: bytes = b"") -> tuple[bytes, str]:
    head = json.dumps({"model_name": "m", "model_version": "3", "id": "q", "outputs": list(tensors)}).encode()
    return head + blobs, str(len(head))


def test_answers_may_mix_json_and_binary() -> None:
    """Each output says how it comes; nested data, flat data and bytes are read alike."""
    found = wire.decode(
        *answer(
            {"name": "a", "datatype": "INT32", "shape": [2, 1], "data": [[1], [2]]},
            {"name": "b", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
            {"name": "c", "datatype": "BYTES", "shape": [2, 1], "data": [["x"], ["y"]]},
            blobs=np.array([1.5], "<f2").tobytes(),
        )
    )
    assert (found.model, found.version, found.id) == ("m", "3", "q")
    assert found.outputs["a"].tolist() == [[1], [2]]
    assert found.outputs["b"].tolist() == [1.5]
    assert found.outputs["c"].tolist() == [[b"x"], [b"y"]]
    assert found.datatypes == {"a": "INT32", "b": "FP16", "c": "BYTES"}


TENSOR = {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
BROKEN = {
    "short": answer(TENSOR, blobs=b"1234"),
    "long": answer(TENSOR, blobs=b"123456789"),
    "wrong shape": answer({**TENSOR, "shape": [3]}, blobs=b"12345678"),
    "unknown datatype": answer({**TENSOR, "datatype": "FP8"}, blobs=b"12345678"),
    "bytes that end early": answer({**TENSOR, "datatype": "BYTES", "shape": [1]}, blobs=b"\x09\0\0\0abcd"),
    "too few elements": answer({**TENSOR, "datatype": "BYTES", "shape": [2]}, blobs=b"\x04\0\0\0abcd"),
    "no outputs": (b'{"model_name": "m"}', "19"),
    "no object": (b"[]", "2"),
    "no JSON": (b"<html>", "6"),
    "header length": (b"{}", "x"),
    "data of another size": answer({"name": "a", "datatype": "FP32", "shape": [2], "data": [1]}),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_answers_are_said_to_be(content: tuple[bytes, str]) -> None:
    """Whatever does not add up raises UnexpectedAnswer, nothing else."""
    with pytest.raises(UnexpectedAnswer):
        wire.decode(*content)


@pytest.mark.parametrize(
    "array", [np.array([np.nan]), np.array([1], "<f2"), np.array([b"\xff"], object), np.array([1], ml_dtypes.bfloat16)]
)
def test_json_tensors_refuse_what_json_cannot_carry(array: wire.Array) -> None:
    """FP16, BF16, NaN and bytes that are not UTF-8."""
    with pytest.raises(InvalidInput, match="'x': JSON cannot carry"):
        wire.to_json("x", array)


def test_json_tensors_are_flat() -> None:
    """Row by row, with the shape beside."""
    assert wire.to_json("x", np.array([[1, 2]], "<i4"))["data"] == [1, 2]
    assert wire.to_json("x", np.array(["ä", b"b"], object))["data"] == ["ä", "b"]


def test_parameters_must_be_json() -> None:
    """A parameter that JSON cannot carry is the caller's error."""
    with pytest.raises(InvalidInput, match="parameter"):
        wire.encode({"x": np.zeros(1)}, None, {"a": float("nan")})
