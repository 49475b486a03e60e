"""Reading an example: a V2 request in JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.datatypes import DATATYPES
from core.errors import InvalidRequest
from repository.records import TensorSpec
from tests.workers.samples import rows
from workers.example import as_batch, made_up, read_example, repeated
from workers.merge import merge


def body(**changes: object) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}]}
    ).encode()


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", [1, 2.5], [1.0, 2.5]),
        ("FP16", [1, 2.5], [1.0, 2.5]),
        ("BF16", [1, 2.5], [1.0, 2.5]),
        ("FP64", [[1, 2]], [1.0, 2.0]),
        ("INT64", [[[-(2**63)]], [2**63 - 1]], [-(2**63), 2**63 - 1]),
        ("UINT64", [0, 2**64 - 1], [0, 2**64 - 1]),
        ("UINT8", [0, 255], [0, 255]),
        ("BOOL", [True, False], [True, False]),
        ("BYTES", ["a", "ä"], [b"a", "ä".encode()]),
    ],
)
def test_flat_and_nested_data_of_each_kind(datatype: str, data: object, expected: list[object]) -> None:
    array = read_example(body(datatype=datatype, data=data))["x"]
    assert array.dtype == DATATYPES[datatype].numpy
    assert array.tolist() == [expected]


@pytest.mark.parametrize(
    "wrong",
    [
        {"datatype": "FP99"},
        {"shape": [3]},
        {"shape": [-1, -2]},
        {"shape": [2**62, 4]},
        {"shape": "x"},
        {"data": [1]},
        {"data": None},
        {"data": ["a", "b"]},
        {"data": [True, False]},
        {"data": [{}, {}]},
        {"datatype": "INT8", "data": [1.5, 2]},
        {"datatype": "INT8", "data": [128, 0]},
        {"datatype": "UINT8", "data": [-1, 0]},
        {"datatype": "BOOL", "data": [0, 1]},
        {"datatype": "BYTES", "data": [1, 2]},
        {"name": 5},
    ],
)
def test_what_is_no_request_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        read_example(body(**wrong))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"inputs": []}', b"\xff", b'{"inputs": ' + b"[" * 100_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_example(text)


def test_two_tensors_of_one_name_are_refused() -> None:
    tensor = {"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}
    with pytest.raises(InvalidRequest, match="two tensors 'x'"):
        read_example(json.dumps({"inputs": [tensor, tensor]}).encode())


@given(st.integers(1, 9), st.integers(1, 9))
def test_rows_are_repeated_in_turn(have: int, want: int) -> None:
    array = repeated({"x": rows(*range(have))}, want)["x"]
    assert array[:, 0].tolist() == [at % have for at in range(want)]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_made_up_inputs_fit_their_specs(datatype: str) -> None:
    """Variable dimensions are 1, the rest as declared, and they travel as any request does."""
    spec = TensorSpec("x", datatype, (-1, 3))
    batch = as_batch((spec,), made_up((spec,)), True)
    array = merge(batch)["x"]
    assert array.shape == (1, 3)
    assert array.dtype == DATATYPES[datatype].numpy
    assert not np.any(array.astype(bool))
