"""V2 gRPC messages ↔ requests and responses: `ModelInferRequest` bytes in, `ModelInferResponse` bytes out. Pure.

A message is walked over once, field by field, before protobuf sees it: so raw tensors become views into it (protobuf
would copy them twice), and a flood of small fields, of which protobuf makes objects forty times their size, is refused
before anything is allocated. Serialised messages concatenate, so an answer is put together from parts that hardly
ever change, and the raw tensors. Citations: OIP open_inference_grpc.proto, T:docs/protocol/README.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from core.datatypes import Buffer, encode_bytes
from core.errors import InvalidRequest, TooLarge, Unsupported
from gateway.codec import parameters, tensors
from gateway.exchange import InferRequest, InferResponse, InputTensor, RequestedOutput
from workers.messages import Output, Scalar

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types; groups (3 and 4) have no place in a proto3 message."""
_INPUTS, _OUTPUTS, _RAW = (number << 3 | _BYTES for number in (5, 6, 7))
"""Tags of ModelInferRequest."""
_TENSOR_PARAMETERS = {_INPUTS: 4 << 3 | _BYTES, _OUTPUTS: 2 << 3 | _BYTES}
_RAW_OUTPUT = bytes([6 << 3 | _BYTES])
"""Tag of ModelInferResponse."""
KINDS = 8
"""Field numbers of ModelInferRequest end below this; whatever lies beyond is counted as number 0."""
SPARE_FIELDS = 16
"""Fields of a message beyond its counted ones: its names, and what a later protocol may add."""


class Message(NamedTuple):
    """A request on its way: what protobuf made of all but its raw tensors, and views of those."""

    head: Any
    raw: list[memoryview]


# --- the walk -----------------------------------------------------------------------------------------------------


def parse(body: bytes, most: int) -> Message:
    """The bytes of a ModelInferRequest → its message.

    `most`: inputs, outputs, raw tensors and parameters, each. Raises TooLarge beyond it, InvalidRequest for bytes
    that are no such message.
    """
    try:
        head, raw = _walk(memoryview(body), most)
        return Message(service_pb2.ModelInferRequest.FromString(head), raw)
    except (IndexError, DecodeError):
        raise InvalidRequest("malformed protobuf: not a ModelInferRequest") from None


def _walk(body: memoryview, most: int) -> tuple[bytes, list[memoryview]]:
    """(all but the raw tensors, the raw tensors)."""
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    fields = [0] * KINDS
    at = since = 0
    end = len(body)
    while at < end:
        start = at
        tag, begin, at = _field(body, at, end)
        number = tag >> 3 if tag < KINDS << 3 else 0
        fields[number] += 1
        if fields[number] > most:
            raise TooLarge(f"more than {most} fields of one kind in the message")
        if tag == _RAW:
            kept.append(body[since:start])
            since = at
            raw.append(body[begin:at])
        elif tag in _TENSOR_PARAMETERS:
            _check_tensor(body[begin:at], _TENSOR_PARAMETERS[tag], most)
    kept.append(body[since:end])
    return b"".join(kept), raw


def _check_tensor(tensor: memoryview, own: int, most: int) -> None:
    """No more than `most` parameters (tag `own`), and few other fields."""
    spare = SPARE_FIELDS + tensors.MAX_RANK
    at = 0
    end = len(tensor)
    while at < end:
        tag, _, at = _field(tensor, at, end)
        if tag == own:
            most -= 1
        else:
            spare -= 1
        if most < 0 or spare < 0:
            raise TooLarge("too many fields in one tensor of the message")


def _field(view: memoryview, at: int, end: int) -> tuple[int, int, int]:
    """(tag, where its content begins, where it ends) of the field at `at`. Raises IndexError past the end."""
    tag = view[at]
    at += 1
    if tag >= 0x80:
        tag, at = _varint(view, at - 1)
    kind = tag & 7
    if kind == _BYTES:
        size = view[at]
        at += 1
        if size >= 0x80:
            size, at = _varint(view, at - 1)
        begin, after = at, at + size
    elif kind == _VARINT:
        begin, (_, after) = at, _varint(view, at)
    elif kind in (_FIXED64, _FIXED32):
        begin, after = at, at + (8 if kind == _FIXED64 else 4)
    else:
        raise IndexError
    if after > end:
        raise IndexError
    return tag, begin, after


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError


# --- requests -----------------------------------------------------------------------------------------------------


def decode(message: Message, most: int) -> InferRequest:
    """A parsed message → the request. Raises InvalidRequest that names the tensor, Unsupported, TooLarge."""
    head, raw = message
    request = InferRequest(_raw_inputs(head, raw) if raw else [_typed_input(tensor) for tensor in head.inputs], head.id)
    if head.parameters:
        tensors.limit(len(head.parameters), most, "parameters")
        parameters.apply(request, _scalars(head.parameters))
    if head.outputs:
        request.outputs = [_requested(output) for output in head.outputs]
    return request


def _raw_inputs(head: Any, raw: list[memoryview]) -> list[InputTensor]:
    """Raw contents and typed ones exclude each other, for the message as a whole."""
    if len(raw) != len(head.inputs):
        raise InvalidRequest(f"{len(raw)} raw_input_contents for {len(head.inputs)} inputs")
    inputs = []
    for tensor, data in zip(head.inputs, raw, strict=True):
        name, shape = _name_and_shape(tensor)
        if tensor.HasField("contents"):
            raise InvalidRequest(f"tensor {name!r}: it has contents where the message has raw_input_contents")
        kind = tensors.datatype(tensor.datatype, name)
        count = tensors.elements(shape, name)
        inputs.append(InputTensor(name, kind.name, shape, tensors.check_raw(kind, count, data, name)))
    return inputs


def _name_and_shape(tensor: Any) -> tuple[str, tuple[int, ...]]:
    name: str = tensor.name
    if tensor.parameters and any(key.startswith(parameters.SHARED_MEMORY) for key in tensor.parameters):
        raise Unsupported(f"tensor {name!r}: shared memory is not offered; send the data")
    if len(tensor.shape) > tensors.MAX_RANK:
        raise InvalidRequest(f"tensor {name!r}: a shape of {len(tensor.shape)} dimensions; at most {tensors.MAX_RANK}")
    return name, tuple(tensor.shape)


_CONTENTS = {
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


def _typed_input(tensor: Any) -> InputTensor:
    name, shape = _name_and_shape(tensor)
    kind = tensors.datatype(tensor.datatype, name)
    count = tensors.elements(shape, name)
    field = _CONTENTS.get(kind.name)
    if field is None:
        raise InvalidRequest(f"tensor {name!r}: contents cannot carry {kind.name}; send it in raw_input_contents")
    values = _values(tensor, name, kind.name, field)
    if len(values) != count:
        raise InvalidRequest(
            f"tensor {name!r}: {len(values)} elements of data where its shape {list(shape)} has {count}"
        )
    data = tensors.pack(kind.name, values, name) if kind.size else encode_bytes(values)
    return InputTensor(name, kind.name, shape, data)


def _values(tensor: Any, name: str, datatype: str, field: str) -> Any:
    values: Any = ()
    for found, content in tensor.contents.ListFields():
        if found.name != field:
            raise InvalidRequest(f"tensor {name!r}: {datatype} goes in {field}, not in {found.name}")
        values = content
    return values


def _scalars(given: Any) -> dict[str, Scalar]:
    return {name: _scalar(name, value) for name, value in given.items()}


def _scalar(name: str, value: Any) -> Scalar:
    choice = value.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidRequest(f"the parameter {name[:64]!r} has no value")
    scalar: Scalar = getattr(value, choice)
    return scalar


def _requested(output: Any) -> RequestedOutput:
    wanted = RequestedOutput(output.name)
    for name, value in output.parameters.items():
        if name == "classification":
            wanted.classification = parameters.top_k(_scalar(name, value), output.name)
        elif name.startswith(parameters.SHARED_MEMORY):
            raise Unsupported(f"output {output.name!r}: shared memory is not offered")
    return wanted


# --- responses ----------------------------------------------------------------------------------------------------


def render(response: InferResponse) -> bytes:
    """A response → the bytes of a ModelInferResponse, its tensors raw, as Triton answers."""
    parts: list[Buffer] = [_prefix(response.model, response.version)]
    if response.request.id:
        parts.append(service_pb2.ModelInferResponse(id=response.request.id).SerializeToString())
    for output in response.outputs:
        parts.append(_output(output.name, output.datatype, output.shape))
        parts.append(_RAW_OUTPUT)
        parts.append(_size(output))
        parts.append(output.data)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _prefix(model: str, version: str) -> bytes:
    message: bytes = service_pb2.ModelInferResponse(model_name=model, model_version=version).SerializeToString()
    return message


@lru_cache(maxsize=4096)
def _output(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    tensor = service_pb2.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    message: bytes = service_pb2.ModelInferResponse(outputs=[tensor]).SerializeToString()
    return message


def _size(output: Output) -> bytes:
    """The length of its data, as a varint."""
    data = output.data
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    groups = bytearray()
    while size >= 0x80:
        groups.append(size & 0x7F | 0x80)
        size >>= 7
    groups.append(size)
    return bytes(groups)
