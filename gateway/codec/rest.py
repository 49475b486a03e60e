"""V2 REST bodies ↔ requests and responses: JSON, binary tensor data, raw binary requests. Pure.

A body is decoded twice over: once for its frame, in which each tensor's `data` stays raw JSON, then that data by a
decoder typed by the tensor's datatype, so a string never passes for a number and the element that is wrong is named.
A binary tensor is a view into the body. Citations: OIP inference_rest.md, T:docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson

from core.datatypes import DATATYPES, Buffer, DataType, decode_bytes, encode_bytes
from core.errors import InvalidRequest, TooLarge, Unsupported, UnsupportedMedia
from gateway.codec import parameters, tensors
from gateway.exchange import InferRequest, InferResponse, InputTensor, RequestedOutput
from repository.records import Signature
from workers.messages import Output, Scalar

Parameters = dict[str, Scalar]


class Limits(NamedTuple):
    """The part of the settings that a body is held to."""

    decoded_bytes: int
    tensors: int


class _Tensor(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    """Empty: absent."""


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Body(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_Output] | None = None


_body = msgspec.json.Decoder(_Body)


def decode(body: Buffer, header_length: int | None, signature: Signature, limits: Limits) -> InferRequest:
    """A request body → the request.

    `header_length`: the value of Inference-Header-Content-Length; None: all of the body is JSON; 0: a raw binary
    request for a model of one input. Raises InvalidRequest that names the tensor or the place, TooLarge, Unsupported.
    """
    if header_length is None:
        request = _plain(body, signature, limits)
        if request is not None:
            return request
    elif header_length == 0:
        return _raw_binary(body, signature)
    head, blobs = _split(body, header_length)
    frame = _frame(head)
    tensors.limit(len(frame.inputs), limits.tensors, "inputs")
    tensors.limit(len(frame.outputs or ()), limits.tensors, "requested outputs")
    request = InferRequest(_inputs(frame.inputs, blobs), frame.id or "")
    if frame.parameters:
        tensors.limit(len(frame.parameters), limits.tensors, "parameters")
        parameters.apply(request, frame.parameters)
    if frame.outputs is not None:
        request.outputs = [_requested(output) for output in frame.outputs]
    return request


def _plain(body: Buffer, signature: Signature, limits: Limits) -> InferRequest | None:
    """The commonest request in one pass: flat JSON data of the model's kind of elements, and no parameters.

    None for any other, and for whatever is wrong: then `decode` goes the long way, which knows what to say.
    """
    element = _ELEMENT.get(signature.inputs[0].datatype) if signature.inputs else None
    if element is None:
        return None
    try:
        frame = _PLAIN[element].decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    if frame.parameters or frame.outputs is not None or len(frame.inputs) > limits.tensors:
        return None
    inputs = []
    for tensor in frame.inputs:
        name, datatype, shape, data = tensor.name, tensor.datatype, tensor.shape, tensor.data
        if tensor.parameters or _ELEMENT.get(datatype) is not element or len(data) != tensors.elements(shape, name):
            return None
        raw = encode_bytes([text.encode() for text in data]) if element is str else tensors.pack(datatype, data, name)
        inputs.append(InputTensor(name, datatype, shape, raw))
    return InferRequest(inputs, frame.id or "")


def _split(body: Buffer, header_length: int | None) -> tuple[Buffer, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if header_length > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {header_length}, but the body has only {len(body)} bytes"
        )
    view = memoryview(body)
    return view[:header_length], view[header_length:]


def _frame(head: Buffer) -> _Body:
    try:
        return _body.decode(head)
    except RecursionError:
        raise InvalidRequest("malformed JSON: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"malformed JSON: it is not UTF-8 (byte {error.start} of a text)") from None
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"not a V2 inference request: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"malformed JSON: {error}") from None


def _inputs(frames: list[_Tensor], blobs: memoryview) -> list[InputTensor]:
    inputs = []
    at = 0
    for frame in frames:
        kind = tensors.datatype(frame.datatype, frame.name)
        count = tensors.elements(frame.shape, frame.name)
        size = _binary_size(frame)
        if size is None:
            data: Buffer = _json_data(frame, kind, count)
        else:
            if at + size > len(blobs):
                raise InvalidRequest(
                    f"tensor {frame.name!r}: binary_data_size is {size}, but only {len(blobs) - at} bytes are left"
                )
            data = tensors.check_raw(kind, count, blobs[at : at + size], frame.name)
            at += size
        inputs.append(InputTensor(frame.name, frame.datatype, frame.shape, data))
    if at != len(blobs):
        raise InvalidRequest(f"{len(blobs) - at} bytes of binary data belong to no tensor")
    return inputs


def _binary_size(frame: _Tensor) -> int | None:
    if not frame.parameters:
        return None
    if any(name.startswith(parameters.SHARED_MEMORY) for name in frame.parameters):
        raise Unsupported(f"tensor {frame.name!r}: shared memory is not offered; send the data")
    size = frame.parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"tensor {frame.name!r}: binary_data_size must be an integer of at least 0")
    if memoryview(frame.data).nbytes:
        raise InvalidRequest(f"tensor {frame.name!r}: it has both data and binary_data_size")
    return size


# --- JSON data ----------------------------------------------------------------------------------------------------

_ELEMENT: dict[str, Any] = {
    row.name: {"b": bool, "i": int, "u": int, "f": float, "O": str}[row.numpy.kind]
    for row in DATATYPES.values()
    if row.json
}


def _plain_decoder(element: Any) -> msgspec.json.Decoder[Any]:
    """Of `_Body`, but for the data: a flat list of `element`, decoded at once."""
    tensor = msgspec.defstruct(
        "Tensor",
        [
            ("name", str),
            ("shape", tuple[int, ...]),
            ("datatype", str),
            ("parameters", Parameters | None, None),
            ("data", list[element], []),
        ],
    )
    body = msgspec.defstruct(
        "Body",
        [
            ("inputs", list[tensor]),  # type: ignore[valid-type]
            ("id", str | None, None),
            ("parameters", Parameters | None, None),
            ("outputs", list[_Output] | None, None),
        ],
    )
    return msgspec.json.Decoder(body)


_PLAIN = {element: _plain_decoder(element) for element in (bool, int, float, str)}


@lru_cache(maxsize=256)
def _data_decoder(element: Any, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = element
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _json_data(frame: _Tensor, kind: DataType, count: int) -> bytes:
    if not memoryview(frame.data).nbytes:
        raise InvalidRequest(f"tensor {frame.name!r}: it has neither data nor binary_data_size")
    if not kind.json:
        raise InvalidRequest(f"tensor {frame.name!r}: JSON cannot carry {kind.name}; send it as binary data")
    values = _flat_values(frame, _ELEMENT[kind.name])
    if len(values) != count:
        raise InvalidRequest(
            f"tensor {frame.name!r}: {len(values)} elements of data where its shape {list(frame.shape)} has {count}"
        )
    if kind.size:
        return tensors.pack(kind.name, values, frame.name)
    return encode_bytes([value.encode() for value in values])


def _flat_values(frame: _Tensor, element: Any) -> list[Any]:
    nested = bytes(memoryview(frame.data)[1:64]).lstrip()[:1] == b"["
    try:
        values: list[Any] = _data_decoder(element, max(1, len(frame.shape)) if nested else 1).decode(frame.data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"tensor {frame.name!r}: its data is not {frame.datatype}: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, UnicodeEncodeError):
        raise InvalidRequest(f"tensor {frame.name!r}: its data is malformed JSON") from None
    return _flatten(values, frame) if nested else values


def _flatten(values: list[Any], frame: _Tensor) -> list[Any]:
    """Nested lists → one flat list, each level as long as the shape says."""
    for level, width in enumerate(frame.shape):
        if level == 0:
            if len(values) != width:
                raise _ragged(frame, level, len(values), width)
            continue
        for row in values:
            if len(row) != width:
                raise _ragged(frame, level, len(row), width)
        values = list(chain.from_iterable(values))
    return values


def _ragged(frame: _Tensor, level: int, found: int, width: int) -> InvalidRequest:
    return InvalidRequest(
        f"tensor {frame.name!r}: {found} entries at level {level} of its data where its shape {list(frame.shape)}"
        f" has {width}"
    )


# --- parameters ---------------------------------------------------------------------------------------------------


def _requested(frame: _Output) -> RequestedOutput:
    wanted = RequestedOutput(frame.name)
    for name, value in (frame.parameters or {}).items():
        if name == "binary_data":
            wanted.binary = parameters.flag(value, name)
        elif name == "classification":
            wanted.classification = parameters.top_k(value, frame.name)
        elif name.startswith(parameters.SHARED_MEMORY):
            raise Unsupported(f"output {frame.name!r}: shared memory is not offered")
    return wanted


def _raw_binary(body: Buffer, signature: Signature) -> InferRequest:
    """The whole body is the one input's data, a batch of one; BYTES must have shape [1] (extension_binary_data.md)."""
    if len(signature.inputs) != 1:
        raise InvalidRequest(f"a raw binary request needs a model of one input; this one has {len(signature.inputs)}")
    spec = signature.inputs[0]
    kind = DATATYPES[spec.datatype]
    if not kind.size:
        if any(dimension not in (1, -1) for dimension in spec.shape):
            raise InvalidRequest(f"tensor {spec.name!r}: a raw binary request of BYTES needs the shape [1]")
        data: Buffer = encode_bytes([bytes(body)])
        shape = tuple(1 for _ in spec.shape)
    else:
        data = body
        shape = _raw_shape(spec.name, spec.shape, len(body), kind)
    return InferRequest([InputTensor(spec.name, spec.datatype, shape, data)], binary_output=True)


def _raw_shape(name: str, spec: tuple[int, ...], size: int, kind: DataType) -> tuple[int, ...]:
    """`spec` with its first dimension, where variable, as a batch of one and at most one other filled from `size`."""
    shape = [1 if at == 0 and width == -1 and len(spec) > 1 else width for at, width in enumerate(spec)]
    free = [at for at, width in enumerate(shape) if width == -1]
    if len(free) > 1:
        raise InvalidRequest(f"tensor {name!r}: a raw binary request needs at most one variable dimension")
    fixed = tensors.elements(tuple(width for width in shape if width != -1), name) * kind.size
    if free and fixed and size % fixed == 0:
        shape[free[0]] = size // fixed
    elif free or size != fixed:
        raise InvalidRequest(f"tensor {name!r}: a body of {size} bytes does not fit {kind.name} of shape {list(spec)}")
    return tuple(shape)


# --- Content-Encoding ---------------------------------------------------------------------------------------------

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def decompress(body: Buffer, encoding: str, limit: int) -> Buffer:
    """The body behind a Content-Encoding; never more than `limit` bytes are made of it.

    Raises UnsupportedMedia for an unknown encoding, TooLarge beyond the limit, InvalidRequest for damaged data.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    window = _WINDOW.get(name)
    if window is None:
        raise UnsupportedMedia(f"Content-Encoding {name[:32]!r} is not accepted: use gzip, deflate or identity")
    stream = zlib.decompressobj(window)
    try:
        decoded = stream.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequest(f"the body is not valid {name}") from None
    if len(decoded) > limit:
        raise TooLarge(f"the body is larger than {limit} bytes once decompressed")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"the body is not one whole {name} stream")
    return decoded


def compress(body: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(1, zlib.DEFLATED, _WINDOW[encoding])
    return stream.compress(body) + stream.flush()


# --- responses ----------------------------------------------------------------------------------------------------


class Rendered(NamedTuple):
    """`header_length`: bytes of JSON before the binary tensors, or None where all of it is JSON."""

    parts: list[Buffer]
    header_length: int | None


def render(response: InferResponse) -> Rendered:
    """A response → its body. Raises InvalidRequest for an output that JSON cannot carry: it says to ask for binary."""
    request = response.request
    if len(response.outputs) == 1 and request.outputs is None and not (request.binary_output or request.id):
        (output,) = response.outputs
        prefix = _one_prefix(response.model, response.version, output.name, output.datatype, output.shape)
        return Rendered([prefix + _json_values(output) + b"}]}"], None)
    blobs: list[Buffer] = []
    parts = [_prefix(response.model, response.version)]
    if request.id:
        parts.append(b'"id":' + orjson.dumps(request.id) + b",")
    parts.append(b'"outputs":[')
    if request.outputs is None:
        for output in response.outputs:
            parts.append(_output(output, request.binary_output, blobs))
            parts.append(b",")
    else:
        for output, wanted in zip(response.outputs, request.outputs, strict=True):
            parts.append(_output(output, request.binary_output if wanted.binary is None else wanted.binary, blobs))
            parts.append(b",")
    if response.outputs:
        parts.pop()
    parts.append(b"]}")
    head = b"".join(parts)
    return Rendered([head, *blobs], len(head)) if blobs else Rendered([head], None)


@lru_cache(maxsize=1024)
def _prefix(model: str, version: str) -> bytes:
    return b'{"model_name":%b,"model_version":"%b",' % (orjson.dumps(model), version.encode())


@lru_cache(maxsize=4096)
def _output_prefix(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    dims = ",".join(map(str, shape))
    return b'{"name":%b,"datatype":"%b","shape":[%b],' % (orjson.dumps(name), datatype.encode(), dims.encode())


@lru_cache(maxsize=4096)
def _one_prefix(model: str, version: str, name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """All that comes before the data of a response of one JSON output."""
    return _prefix(model, version) + b'"outputs":[' + _output_prefix(name, datatype, shape) + b'"data":'


def _output(output: Output, binary: bool, blobs: list[Buffer]) -> bytes:
    prefix = _output_prefix(output.name, output.datatype, output.shape)
    if binary:
        blobs.append(output.data)
        return prefix + b'"parameters":{"binary_data_size":%d}}' % len(output.data)
    return prefix + b'"data":' + _json_values(output) + b"}"


def _json_values(output: Output) -> bytes:
    kind = DATATYPES[output.datatype]
    if not kind.json:
        raise _not_json(output, kind.name)
    if not kind.size:
        return _json_texts(output)
    values = orjson.dumps(np.frombuffer(output.data, kind.numpy), option=orjson.OPT_SERIALIZE_NUMPY)
    if kind.numpy.kind == "f" and b"null" in values:
        raise _not_json(output, "NaN or infinity")
    return values


def _json_texts(output: Output) -> bytes:
    count = tensors.elements(output.shape, output.name)
    try:
        return orjson.dumps([element.decode() for element in decode_bytes(output.data, count, output.name)])
    except UnicodeDecodeError:
        raise _not_json(output, "bytes that are not UTF-8") from None


def _not_json(output: Output, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"output {output.name!r}: JSON cannot carry {what}; ask for it as binary data (the parameter binary_data: true)"
    )
