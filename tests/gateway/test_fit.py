"""Does a request fit its model: names, datatypes, shapes, rows; and what it is cut into."""

from __future__ import annotations

import pytest

from core.errors import InvalidRequest
from gateway.batching.entry import BatchKey, ColumnKey
from gateway.exchange import InferRequest, InputTensor, RequestedOutput
from gateway.fit import Mould
from repository.records import Signature, TensorSpec

FIXED = Signature(
    (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,))), (TensorSpec("y", "FP32", (-1,)),)
)


def tensor(name: str, datatype: str, *shape: int, data: bytes = b"") -> InputTensor:
    return InputTensor(name, datatype, shape, data)


def request(*inputs: InputTensor, **more: object) -> InferRequest:
    return InferRequest(list(inputs), **more)  # type: ignore[arg-type]


A, B = tensor("a", "FP32", 3, 2, data=b"A"), tensor("b", "INT64", 3, data=b"B")
KEY = BatchKey((ColumnKey("a", "FP32", (2,)), ColumnKey("b", "INT64", ())))


@pytest.mark.parametrize("inputs", [(A, B), (B, A)])
def test_pieces_in_the_signatures_order(inputs: tuple[InputTensor, ...]) -> None:
    """In whatever order inputs come, key and pieces follow the signature."""
    assert Mould(FIXED, 4).press(request(*inputs)) == (KEY, 3, [b"A", b"B"])


def test_variable_rows_have_keys_of_their_own() -> None:
    """Where a row's shape varies, only equal shapes share a key; so do only equal parameters."""
    mould = Mould(Signature((TensorSpec("a", "FP32", (-1, -1)),), ()), 8)
    keys = [mould.press(request(tensor("a", "FP32", 2, width)))[0] for width in (3, 3, 4)]
    assert keys[0] == keys[1] != keys[2]
    with_parameters = [
        mould.press(request(tensor("a", "FP32", 2, 3), parameters=parameters))[0]
        for parameters in ({"t": 1}, {"t": 2}, {"t": 1})
    ]
    assert with_parameters[0] == with_parameters[2] != with_parameters[1]


def test_unbatched() -> None:
    """Without batching the key has the whole shape, and a request counts as one row."""
    mould = Mould(Signature((TensorSpec("a", "FP32", (-1, 2)),), ()), 0)
    assert mould.press(request(tensor("a", "FP32", 50, 2)))[:2] == (BatchKey((ColumnKey("a", "FP32", (50, 2)),)), 1)


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ((A,), "'b': the model needs it"),
        ((A, B, tensor("c", "FP32", 3)), "'c': the model has no such input"),
        ((A, A), "'a': it stands in the request more than once"),
        ((A, tensor("c", "INT64", 3)), "'b': the model needs it"),
        ((tensor("a", "FP64", 3, 2), B), "'a': FP64 where the model takes FP32"),
        ((tensor("a", "FP32", 3, 3), B), "'a': shape [3, 3] does not fit the model's [-1, 2]"),
        ((tensor("a", "FP32", 3), B), "'a': shape [3]"),
        ((A, tensor("b", "INT64", 2)), "'b': 2 rows where 'a' has 3"),
        ((tensor("a", "FP32", 5, 2), tensor("b", "INT64", 5)), "5 rows; the model takes 1 to 4"),
        ((tensor("a", "FP32", 0, 2), tensor("b", "INT64", 0)), "0 rows"),
    ],
)
def test_misfits(inputs: tuple[InputTensor, ...], names: str) -> None:
    """Missing, extra and duplicate tensors, wrong datatypes, shapes and rows are refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        Mould(FIXED, 4).press(request(*inputs))
    assert names in refused.value.message


@pytest.mark.parametrize(("outputs", "names"), [(["z"], "no such output; it has y"), (["y", "y"], "more than once")])
def test_requested_outputs(outputs: list[str], names: str) -> None:
    """An output that the model does not have, or that is asked for twice, is refused by name."""
    with pytest.raises(InvalidRequest) as refused:
        Mould(FIXED, 4).press(request(A, B, outputs=[RequestedOutput(name) for name in outputs]))
    assert names in refused.value.message
