"""gRPC messages become requests, and answers messages, whatever the datatype and whoever sends them."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from core.datatypes import DATATYPES, Buffer, decode_bytes, encode_bytes
from core.errors import InvalidRequest, PenstockError, TooLarge, Unsupported
from gateway.codec import protobuf
from gateway.exchange import InferRequest, InferResponse
from tests.arrays import to_array
from workers.messages import Output

MOST = 8
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def message(**fields: Any) -> Any:
    return service_pb2.ModelInferRequest(**{"model_name": "m", **fields})


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1,), **fields: Any) -> Any:
    return service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **fields)


def typed(datatype: str, values: list[Any], shape: tuple[int, ...] | None = None, field: str = "") -> Any:
    contents = service_pb2.InferTensorContents(**{field or CONTENTS[datatype]: values})
    return message(inputs=[tensor("x", datatype, shape or (len(values),), contents=contents)])


def decode(sent: Any, most: int = MOST) -> InferRequest:
    body = sent if isinstance(sent, bytes) else sent.SerializeToString()
    return protobuf.decode(protobuf.parse(body, most), most)


def refusal(sent: Any, most: int = MOST) -> PenstockError:
    with pytest.raises(PenstockError) as raised:
        decode(sent, most)
    return raised.value


def array(datatype: str, data: Buffer, count: int) -> list[Any]:
    values: list[Any] = to_array(DATATYPES[datatype], (count,), data).tolist()
    return values


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_raw_tensors_come_through_byte_by_byte(datatype: str, data: st.DataObject) -> None:
    """Two tensors in one message, neither taken for the other, as views of the bytes that came."""
    kind = DATATYPES[datatype]
    pieces = []
    for _ in range(2):
        count = data.draw(st.integers(0, 5))
        if kind.size:
            pieces.append((count, data.draw(st.binary(min_size=count * kind.size, max_size=count * kind.size))))
        else:
            elements = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
            pieces.append((count, encode_bytes(elements)))
    sent = message(
        inputs=[tensor(name, datatype, (count,)) for name, (count, _) in zip("ab", pieces, strict=True)],
        raw_input_contents=[raw for _, raw in pieces],
    )
    found = decode(sent).inputs
    assert [(one.name, one.datatype, one.shape, bytes(one.data)) for one in found] == [
        (name, datatype, (count,), raw) for name, (count, raw) in zip("ab", pieces, strict=True)
    ]
    assert all(isinstance(one.data, memoryview) for one in found)


_ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    "b": st.booleans(),
    "f": st.floats(width=32),
    "O": st.binary(max_size=6),
}


def elements(datatype: str) -> st.SearchStrategy[Any]:
    dtype = DATATYPES[datatype].numpy
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return st.integers(int(info.min), int(info.max))
    return _ELEMENTS[dtype.kind]


@pytest.mark.parametrize("datatype", CONTENTS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_typed_contents_become_raw_bytes(datatype: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(elements(datatype), max_size=6))
    (found,) = decode(typed(datatype, values)).inputs
    assert found.shape == (len(values),)
    np.testing.assert_array_equal(array(datatype, found.data, len(values)), values)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("INT16", 1 << 15), ("UINT8", 256), ("UINT16", 1 << 16)],
)
def test_a_number_outside_its_datatype_is_refused(datatype: str, value: int) -> None:
    error = refusal(typed(datatype, [value]))
    assert isinstance(error, InvalidRequest)
    assert "'x'" in error.message
    assert datatype in error.message


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_goes_raw_only(datatype: str) -> None:
    assert "raw_input_contents" in refusal(typed(datatype, [1.0], field="fp32_contents")).message


@pytest.mark.parametrize("datatype", CONTENTS)
def test_contents_of_another_field_are_refused_by_name(datatype: str) -> None:
    """Also beside the right field."""
    wrong = "fp64_contents" if datatype != "FP64" else "fp32_contents"
    error = refusal(typed(datatype, [1.0], field=wrong))
    assert "'x'" in error.message
    assert wrong in error.message
    both = typed("FP32", [1.0])
    both.inputs[0].contents.bytes_contents.append(b"y")
    assert "bytes_contents" in refusal(both).message


def test_raw_and_typed_contents_exclude_each_other_for_the_whole_message() -> None:
    contents = service_pb2.InferTensorContents(fp32_contents=[1.0])
    sent = message(inputs=[tensor("a"), tensor("b", contents=contents)], raw_input_contents=[struct.pack("<f", 1)] * 2)
    assert "'b'" in refusal(sent).message


@pytest.mark.parametrize("raws", [[], [b"1234"] * 2])
def test_each_input_needs_its_data(raws: list[bytes]) -> None:
    error = refusal(message(inputs=[tensor()], raw_input_contents=raws))
    assert isinstance(error, InvalidRequest)


@pytest.mark.parametrize("raw", [b"", b"123", b"12345"])
def test_raw_data_must_be_as_long_as_its_shape(raw: bytes) -> None:
    error = refusal(message(inputs=[tensor()], raw_input_contents=[raw]))
    assert "'x'" in error.message
    assert "4" in error.message


@pytest.mark.parametrize("shape", [(-1,), (1 << 40,), (1 << 20, 1 << 20), (1,) * 33, (2, 2)])
def test_a_shape_that_lies_is_refused_before_anything_is_made_of_it(shape: tuple[int, ...]) -> None:
    raw = message(inputs=[tensor(shape=shape)], raw_input_contents=[b"1234"])
    contents = service_pb2.InferTensorContents(fp32_contents=[1.0])
    for sent in (raw, message(inputs=[tensor(shape=shape, contents=contents)])):
        error = refusal(sent)
        assert isinstance(error, InvalidRequest)
        assert "'x'" in error.message


def test_an_unknown_datatype_is_named() -> None:
    assert "FP8" in refusal(message(inputs=[tensor(datatype="FP8")], raw_input_contents=[b"1"])).message


def parameter(**value: Any) -> Any:
    return service_pb2.InferParameter(**value)


def test_every_kind_of_parameter_comes_through() -> None:
    """The reserved ones where they belong; tritonclient sends `priority` as uint64, `timeout` as int64."""
    sent = message(
        id="42",
        parameters={
            "priority": parameter(uint64_param=2),
            "timeout": parameter(int64_param=500),
            "flag": parameter(bool_param=True),
            "whole": parameter(int64_param=-3),
            "text": parameter(string_param="hello"),
            "real": parameter(double_param=0.5),
            "large": parameter(uint64_param=(1 << 64) - 1),
            "triton_enable_empty_final_response": parameter(bool_param=True),
        },
    )
    request = decode(sent)
    assert (request.id, request.priority, request.timeout_us) == ("42", 2, 500)
    assert request.parameters == {"flag": True, "whole": -3, "text": "hello", "real": 0.5, "large": (1 << 64) - 1}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("priority", {"int64_param": -1}, InvalidRequest),
        ("priority", {"string_param": "1"}, InvalidRequest),
        ("timeout", {"double_param": 1.0}, InvalidRequest),
        ("nothing", {}, InvalidRequest),
        ("sequence_id", {"int64_param": 7}, Unsupported),
    ],
)
def test_a_parameter_that_cannot_be_is_named(name: str, value: dict[str, Any], error: type[PenstockError]) -> None:
    found = refusal(message(parameters={name: parameter(**value)}))
    assert isinstance(found, error)
    assert name in found.message


def wanted(name: str = "y", **parameters: Any) -> Any:
    output = service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name)
    for key, value in parameters.items():
        output.parameters[key].CopyFrom(value)
    return output


def test_outputs_are_asked_for_by_name_and_with_classes() -> None:
    sent = message(outputs=[wanted("a"), wanted("b", classification=parameter(int64_param=3))])
    outputs = decode(sent).outputs
    assert outputs is not None
    assert [(one.name, one.classification) for one in outputs] == [("a", 0), ("b", 3)]
    assert decode(message()).outputs is None
    assert "'y'" in refusal(message(outputs=[wanted(classification=parameter(int64_param=0))])).message


def test_shared_memory_is_not_offered() -> None:
    region = parameter(string_param="r")
    of_input = message(inputs=[tensor(parameters={"shared_memory_region": region})])
    of_output = message(outputs=[wanted(shared_memory_region=region)])
    assert isinstance(refusal(of_input), Unsupported)
    assert isinstance(refusal(of_output), Unsupported)


# --- hostile bytes ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_a_request_or_a_clear_refusal(body: bytes) -> None:
    _decode_or_refuse(body)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_message_is_a_request_or_a_clear_refusal(data: st.DataObject) -> None:
    sent = message(
        id="1",
        inputs=[tensor("a", "FP32", (2,)), tensor("b", "BYTES", (1,))],
        outputs=[wanted("y", classification=parameter(int64_param=1))],
        parameters={"p": parameter(double_param=1.5)},
        raw_input_contents=[bytes(8), encode_bytes([b"text"])],
    )
    body = bytearray(sent.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(body[: data.draw(st.integers(1, len(body)))]))


def _decode_or_refuse(body: bytes) -> None:
    with suppress(InvalidRequest, TooLarge, Unsupported):
        decode(body)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_the_walk_takes_nothing_that_protobuf_reads_otherwise(body: bytes) -> None:
    """Where both understand the bytes, they agree on the raw tensors and on the rest."""
    try:
        whole = service_pb2.ModelInferRequest.FromString(body)
        found = protobuf.parse(body, 100)
    except (InvalidRequest, TooLarge, DecodeError):
        return
    assert [bytes(raw) for raw in found.raw] == list(whole.raw_input_contents)
    assert found.head.id == whole.id
    assert len(found.head.inputs) == len(whole.inputs)


@pytest.mark.parametrize("field", [4, 5, 6, 7, 99])
def test_a_flood_of_fields_is_refused_before_protobuf_makes_objects_of_them(field: int) -> None:
    tag = struct.pack("<B", field << 3 | 2) if field < 16 else bytes([(field & 0xF) << 3 | 0x82, field >> 4])
    assert isinstance(refusal((tag + b"\0") * (MOST + 1)), TooLarge)
    if field == 7:
        assert len(protobuf.parse((tag + b"\0") * MOST, MOST).raw) == MOST


@pytest.mark.parametrize(("field", "own"), [(5, 4), (6, 2), (5, 3), (5, 60)])
def test_a_flood_inside_one_tensor_is_refused_too(field: int, own: int) -> None:
    """Parameters (4 and 2), a shape sent one dimension at a time (3), and fields that no one knows."""
    tag = bytes([own << 3 | 2]) if own < 16 else bytes([(own & 0xF) << 3 | 0x82, own >> 4])
    tensor = (tag + b"\0") * 100
    assert isinstance(refusal(bytes([field << 3 | 2, 0x80 | len(tensor) & 0x7F, len(tensor) >> 7]) + tensor), TooLarge)


@pytest.mark.parametrize(
    "body",
    [
        b"\x0b" * 300 + b"\x0c" * 300,  # groups within groups
        b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of 2^64 - 1
        b"\x2a" + b"\xff" * 12,  # a length without end
        b"\x0a\x02\xff\xfe",  # a name that is not UTF-8
        b"\x0a\x05abc",  # a name that runs past the end
        b"\x3a",
    ],
)
def test_bytes_that_are_no_message_are_malformed(body: bytes) -> None:
    error = refusal(body)
    assert isinstance(error, InvalidRequest)
    assert "malformed" in error.message


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_an_answer_is_one_message_with_raw_tensors(size: int) -> None:
    """As protobuf itself would have read and written it, whatever the length of its tensors."""
    data = memoryview(bytes(index & 0xFF for index in range(size)))
    outputs = [Output("a", "UINT8", (size,), data), Output("b", "BYTES", (1,), encode_bytes([b"xyz"]))]
    body = protobuf.render(InferResponse("m", "3", outputs, InferRequest([], id="né")))
    told = service_pb2.ModelInferResponse.FromString(body)
    assert (told.model_name, told.model_version, told.id) == ("m", "3", "né")
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [
        ("a", "UINT8", [size]),
        ("b", "BYTES", [1]),
    ]
    assert list(told.raw_output_contents) == [bytes(data), encode_bytes([b"xyz"])]


def test_bytes_elements_are_those_of_the_reference_client() -> None:
    texts = np.array([b"", b"\x00\xff", "grün".encode()], dtype=object)
    raw = serialize_byte_tensor(texts).item()
    (found,) = decode(message(inputs=[tensor("x", "BYTES", (3,))], raw_input_contents=[raw])).inputs
    assert decode_bytes(found.data, 3) == texts.tolist()
