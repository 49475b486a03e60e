"""REST bodies: what goes in comes out, for every datatype, and every lie is a clear 400."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core.datatypes import DATATYPES, to_wire
from core.errors import InvalidRequest, PenstockError, TooLarge, Unsupported, UnsupportedMedia
from gateway.codec import rest
from gateway.exchange import InferRequest, InferResponse, RequestedOutput
from repository.records import Signature, TensorSpec
from tests.arrays import to_array
from workers.messages import Output

LIMITS = rest.Limits(decoded_bytes=1 << 20, tensors=8)
NOTHING = Signature((), ())


def decode(
    body: bytes | dict[str, Any], header_length: int | None = None, signature: Signature = NOTHING
) -> InferRequest:
    return rest.decode(body if isinstance(body, bytes) else orjson.dumps(body), header_length, signature, LIMITS)


def tensor(data: Any, shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data, **more}]}


def arrays(name: str) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
    if name == "BYTES":
        return hnp.arrays(object, shapes, elements=st.binary(max_size=9), fill=st.nothing())
    if name == "BF16":
        return hnp.arrays(np.float32, shapes, elements=st.floats(-1e3, 1e3, width=32)).map(
            lambda array: array.astype(ml_dtypes.bfloat16)
        )
    return hnp.arrays(DATATYPES[name].numpy, shapes)


@pytest.mark.parametrize("name", DATATYPES)
@given(data=st.data())
def test_binary_round_trip(name: str, data: st.DataObject) -> None:
    """Every datatype survives binary tensor data, in and out, bit by bit."""
    array = data.draw(arrays(name))
    blob = bytes(to_wire(DATATYPES[name], array))
    parameters = {"binary_data_size": len(blob)}
    head = orjson.dumps({"inputs": [{"name": "x", "shape": array.shape, "datatype": name, "parameters": parameters}]})
    (decoded,) = decode(head + blob, len(head)).inputs
    assert decoded.shape == array.shape
    assert bytes(decoded.data) == blob
    output = Output("y", name, array.shape, decoded.data)
    rendered = rest.render(InferResponse("m", "1", [output], InferRequest([], binary_output=True)))
    assert rendered.header_length is not None
    body = b"".join(rendered.parts)
    (shown,) = orjson.loads(body[: rendered.header_length])["outputs"]
    assert shown["parameters"]["binary_data_size"] == len(blob)
    again = to_array(DATATYPES[name], tuple(shown["shape"]), body[rendered.header_length :])
    assert again.tobytes() == array.tobytes() if name != "BYTES" else again.tolist() == array.tolist()


JSON_NAMES = [name for name, kind in DATATYPES.items() if kind.json]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", JSON_NAMES)
@given(data=st.data())
def test_json_round_trip(name: str, nested: bool, data: st.DataObject) -> None:
    """Every datatype that JSON carries survives it, flat or nested."""
    if name == "BYTES":
        shapes = hnp.array_shapes(max_dims=3, max_side=4)
        texts = data.draw(hnp.arrays(object, shapes, elements=st.text(max_size=5), fill=st.nothing()))
        array, values = texts, (texts if nested else texts.reshape(-1)).tolist()
    else:
        array = data.draw(arrays(name))
        if array.dtype.kind == "f":
            array = np.nan_to_num(array)
        values = (array if nested else array.reshape(-1)).tolist()
    (decoded,) = decode(tensor(values, list(array.shape), name)).inputs
    assert bytes(decoded.data) == bytes(to_wire(DATATYPES[name], array))
    output = Output("y", name, array.shape, decoded.data)
    rendered = rest.render(InferResponse("m", "1", [output], InferRequest([])))
    assert rendered.header_length is None
    (shown,) = orjson.loads(b"".join(rendered.parts))["outputs"]
    again = np.array(shown["data"], dtype=array.dtype).reshape(shown["shape"])
    np.testing.assert_array_equal(again, array)


LIES: list[tuple[Any, str]] = [
    (b"", "malformed JSON"),
    (b"{", "malformed JSON"),
    (b"[]", "not a V2 inference request"),
    (b'{"inputs": 3}', "inputs"),
    (b"{}", "inputs"),
    (b'{"inputs":[{"name":"x"}]}', "$.inputs[0]"),
    (b'{"id":"\xff","inputs":[]}', "malformed JSON"),
    (b'{"id":"\\ud800","inputs":[]}', "malformed JSON"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 100_000, ""),
    (b'{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested too deeply"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "malformed JSON"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e400]}]}', "'x'"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 5000 + b"]" * 5000 + b"}]}", ""),
    (tensor([1.0], [1], "FP33"), "unknown datatype 'FP33'"),
    (tensor([1.0], [-1]), "negative"),
    (tensor([1.0], [1 << 62, 4]), "18446744073709551616 elements"),
    (tensor([1.0], [1 << 31, 1 << 31, 1 << 31]), "elements"),
    (b'{"inputs":[{"name":"x","shape":[99999999999999999999],"datatype":"FP32","data":[1]}]}', "shape"),
    (tensor([1.0], [1] * 40), "dimensions"),
    (tensor([1.0], [0]), "has 0"),
    (tensor([1.0, 2.0], [3]), "2 elements of data where its shape [3] has 3"),
    (tensor([[1.0, 2.0], [3.0]], [2, 2]), "1 entries at level 1"),
    (tensor([[1.0, 2.0]], [2, 1]), "1 entries at level 0"),
    (tensor([[[1.0]]], [1]), "'x'"),
    (tensor(["1"], [1]), "Expected `float`"),
    (tensor([True], [1]), "Expected `float`"),
    (tensor([None], [1]), "Expected `float`"),
    (tensor([1e39], [1]), "range of FP32"),
    (tensor([1.5], [1], "INT32"), "Expected `int`"),
    (tensor([300], [1], "UINT8"), "range of UINT8"),
    (tensor([-1], [1], "UINT64"), "range of UINT64"),
    (tensor([2**63], [1], "INT64"), "range of INT64"),
    (tensor([1], [1], "BOOL"), "Expected `bool`"),
    (tensor([1], [1], "BYTES"), "Expected `str`"),
    (tensor([1.0], [1], "FP16"), "JSON cannot carry FP16"),
    (tensor([1.0], [1], "BF16"), "JSON cannot carry BF16"),
    (tensor({"a": 1}, [1]), "'x'"),
    ({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}, "neither data nor"),
    (tensor([1.0], [1], parameters={"binary_data_size": 4}), "both data and"),
    (tensor([1.0], [1], parameters={"deep": {"er": 1}}), "parameters"),
    ({**tensor([1.0], [1]), "parameters": {"timeout": -1}}, "'timeout'"),
    ({**tensor([1.0], [1]), "parameters": {"timeout": "1"}}, "'timeout'"),
    ({**tensor([1.0], [1]), "parameters": {"priority": 1.5}}, "'priority'"),
    ({**tensor([1.0], [1]), "parameters": {"priority": -1}}, "'priority'"),
    ({**tensor([1.0], [1]), "parameters": {"binary_data_output": 1}}, "'binary_data_output'"),
    (
        json.dumps({**tensor([1.0], [1]), "parameters": {"mine": 1 << 64}}).encode(),
        "'mine' is an integer of more than 64",
    ),
    (json.dumps({**tensor([1.0], [1]), "parameters": {"mine": -(1 << 63) - 1}}).encode(), "'mine' is an integer"),
    ({**tensor([1.0], [1]), "outputs": [{"name": "y", "parameters": {"classification": 0}}]}, "'classification'"),
    ({**tensor([1.0], [1]), "outputs": [{"name": "y", "parameters": {"binary_data": "no"}}]}, "'binary_data'"),
]


@pytest.mark.parametrize(("body", "names"), LIES, ids=range(len(LIES)))
def test_lies_in_json(body: Any, names: str) -> None:
    """Malformed JSON, lying shapes, wrong types and numbers out of range: InvalidRequest that names the place."""
    with pytest.raises(InvalidRequest) as refused:
        decode(body)
    assert names in refused.value.message


def binary(sizes: list[Any], blobs: bytes, shape: list[int] | None = None, datatype: str = "FP32") -> tuple[bytes, int]:
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": f"x{at}",
                    "shape": shape or [1],
                    "datatype": datatype,
                    "parameters": {"binary_data_size": size},
                }
                for at, size in enumerate(sizes)
            ]
        }
    )
    return head + blobs, len(head)


@pytest.mark.parametrize(
    ("sizes", "blobs", "shape", "datatype", "names"),
    [
        ([8], b"1234", None, "FP32", "only 4 bytes are left"),
        ([4], b"12345678", None, "FP32", "belong to no tensor"),
        ([3], b"123", None, "FP32", "3 bytes of data where its shape and FP32 need 4"),
        ([4], b"1234", [1 << 30], "FP64", "need 8589934592"),
        ([-4], b"1234", None, "FP32", "binary_data_size"),
        (["4"], b"1234", None, "FP32", "binary_data_size"),
        ([True], b"1", None, "BOOL", "binary_data_size"),
        ([4, 1 << 62], b"1234", None, "FP32", "'x1'"),
        ([4], b"\xff\xff\xff\xff", None, "BYTES", "'x0'"),
        ([6], b"\x01\x00\x00\x00ab", None, "BYTES", "take 5 bytes, its data has 6"),
        ([5], b"\x01\x00\x00\x00a", [1 << 30], "BYTES", "cannot fit"),
    ],
)
def test_lies_in_binary(sizes: list[Any], blobs: bytes, shape: list[int] | None, datatype: str, names: str) -> None:
    """A binary_data_size or shape that does not fit the bytes is refused before anything is allocated for it."""
    body, length = binary(sizes, blobs, shape, datatype)
    with pytest.raises(InvalidRequest) as refused:
        decode(body, length)
    assert names in refused.value.message


def test_header_length_beyond_the_body() -> None:
    """An Inference-Header-Content-Length larger than the body is named."""
    with pytest.raises(InvalidRequest, match="has only 2 bytes"):
        decode(b"{}", 1 << 60)


def test_too_many_tensors() -> None:
    """Inputs, outputs and parameters have a limit of their own."""
    many = {"inputs": [tensor([1.0], [1])["inputs"][0] for _ in range(9)]}
    for body in (
        many,
        {**tensor([1.0], [1]), "outputs": [{"name": str(at)} for at in range(9)]},
        {**tensor([1.0], [1]), "parameters": {str(at): at for at in range(9)}},
    ):
        with pytest.raises(TooLarge):
            decode(body)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{**tensor([1.0], [1])["inputs"][0], "parameters": {"shared_memory_region": "r"}}]},
        {**tensor([1.0], [1]), "parameters": {"sequence_id": 7}},
        {**tensor([1.0], [1]), "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
    ],
)
def test_extensions_not_offered(body: dict[str, Any]) -> None:
    """Shared memory and sequences are refused as unsupported, not ignored."""
    with pytest.raises(Unsupported):
        decode(body)


def test_parameters_go_where_they_belong() -> None:
    """Reserved parameters are understood, `triton_` ones dropped, the rest is the model's."""
    parameters = {
        "priority": 1,
        "timeout": 5000,
        "binary_data_output": True,
        "sequence_id": 0,
        "triton_x": 1,
        "headers": "h",
        "temperature": 0.5,
        "mode": "fast",
    }
    request = decode({**tensor([1.0], [1]), "id": "a", "parameters": parameters})
    assert (request.priority, request.timeout_us, request.binary_output, request.id) == (1, 5000, True, "a")
    assert request.parameters == {"temperature": 0.5, "mode": "fast"}


def spec(shape: tuple[int, ...], datatype: str = "FP32") -> Signature:
    return Signature((TensorSpec("x", datatype, shape),), ())


@pytest.mark.parametrize(
    ("signature", "body", "shape"),
    [
        (spec((-1, 4)), b"1234" * 4, (1, 4)),
        (spec((-1, -1)), b"1234" * 3, (1, 3)),
        (spec((-1,)), b"1234" * 3, (3,)),
        (spec((-1, 1), "BYTES"), b"any bytes", (1, 1)),
    ],
)
def test_raw_binary(signature: Signature, body: bytes, shape: tuple[int, ...]) -> None:
    """With a header length of 0 the body is the one input, as a batch of one; outputs come back binary."""
    request = decode(body, 0, signature)
    assert request.inputs[0].shape == shape
    assert bytes(request.inputs[0].data).endswith(body)
    assert request.binary_output


@pytest.mark.parametrize(
    "signature", [Signature((), ()), spec((-1, 4)), spec((-1, -1, -1)), spec((-1, 2), "BYTES"), spec((-1, -1, 0))]
)
def test_raw_binary_that_cannot_be(signature: Signature) -> None:
    """More than one input, more than one free dimension, or bytes that do not fit: InvalidRequest."""
    with pytest.raises(InvalidRequest):
        decode(b"123", 0, signature)


@given(st.binary(max_size=200), st.sampled_from([None, 0, 1, 50]))
def test_any_bytes_are_a_request_or_an_error(body: bytes, header_length: int | None) -> None:
    """No body raises anything but an error with a meaning."""
    with contextlib.suppress(PenstockError):
        decode(body, header_length, spec((-1, 4)))


def test_encodings() -> None:
    """gzip and deflate are undone; unknown encodings, damage and bombs are refused with bounded memory."""
    assert rest.decompress(gzip.compress(b"abc"), "GZIP", 10) == b"abc"
    assert rest.decompress(zlib.compress(b"abc"), "deflate", 10) == b"abc"
    assert rest.decompress(b"abc", "identity", 1) == b"abc"
    with pytest.raises(UnsupportedMedia, match="br"):
        rest.decompress(b"", "br", 10)
    for damaged in (b"abc", gzip.compress(b"abc")[:-1], gzip.compress(b"abc") + b"x"):
        with pytest.raises(InvalidRequest):
            rest.decompress(damaged, "gzip", 10)
    bomb = gzip.compress(bytes(50 << 20))
    with pytest.raises(TooLarge):
        rest.decompress(bomb, "gzip", 1 << 20)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (Output("y", "FP32", (2,), np.array([1, np.nan], "f4").tobytes()), "NaN or infinity"),
        (Output("y", "FP64", (1,), np.array([np.inf]).tobytes()), "NaN or infinity"),
        (Output("y", "FP16", (1,), b"ab"), "FP16"),
        (Output("y", "BF16", (1,), b"ab"), "BF16"),
        (Output("y", "BYTES", (1,), b"\x01\x00\x00\x00\xff"), "UTF-8"),
    ],
)
def test_what_json_cannot_carry(output: Output, names: str) -> None:
    """NaN, infinity, FP16, BF16 and bytes that are no text: an error that says to ask for binary; binary works."""
    with pytest.raises(InvalidRequest) as refused:
        rest.render(InferResponse("m", "1", [output], InferRequest([])))
    assert names in refused.value.message
    assert "binary" in refused.value.message
    request = InferRequest([], outputs=[RequestedOutput("y", binary=True)])
    assert b"".join(rest.render(InferResponse("m", "1", [output], request)).parts).endswith(output.data)


def test_rendering_of_the_frame() -> None:
    """The id is echoed, names are escaped, outputs choose binary one by one, and the JSON is what the protocol says."""
    outputs = [Output('y"\n', "INT32", (2,), np.array([1, 2], "<i4").tobytes()), Output("z", "BOOL", (1,), b"\x01")]
    request = InferRequest([], id='a"b', outputs=[RequestedOutput('y"\n', binary=False), RequestedOutput("z")])
    rendered = rest.render(InferResponse("m", "12", outputs, request))
    assert orjson.loads(b"".join(rendered.parts)) == {
        "model_name": "m",
        "model_version": "12",
        "id": 'a"b',
        "outputs": [
            {"name": 'y"\n', "datatype": "INT32", "shape": [2], "data": [1, 2]},
            {"name": "z", "datatype": "BOOL", "shape": [1], "data": [True]},
        ],
    }
    assert prod(outputs[0].shape) == 2
