"""numpy arrays ↔ V2 tensors: a JSON header with the raw little-endian bytes of each tensor behind it.

A BYTES element is a 4-byte little-endian length and its bytes. BF16 is `ml_dtypes.bfloat16`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput, UnexpectedAnswer

Array = NDArray[Any]
Tensor = dict[str, Any]
"""A V2 tensor as JSON: name, shape, datatype, data."""

HEADER_LENGTH = "Inference-Header-Content-Length"
FIXED: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes of a fixed size; BYTES is the other one."""
NOT_IN_JSON = frozenset({"FP16", "BF16"})
_NAMES = {dtype: name for name, dtype in FIXED.items()}
_LENGTH = struct.Struct("<I")


class Response(NamedTuple):
    """One answer: the version that gave it, and its outputs by name."""

    model: str
    version: str
    id: str
    outputs: dict[str, Array]
    datatypes: dict[str, str]


def datatype_of(array: Array) -> str:
    """The V2 name of an array's dtype; text, bytes and objects are BYTES. Raises InvalidInput where there is none."""
    if array.dtype.kind in "OSUT":
        return "BYTES"
    name = _NAMES.get(array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype)
    if name is None:
        raise InvalidInput(f"the V2 protocol has no datatype for {array.dtype}")
    return name


def to_wire(datatype: str, array: Array) -> bytes | memoryview:
    """The raw bytes of an array, row by row: a view where it lies so already."""
    if datatype == "BYTES":
        return b"".join(_element(element) for element in array.reshape(-1).tolist())
    return np.ascontiguousarray(array, dtype=FIXED[datatype]).reshape(-1).view(np.uint8).data


def _element(element: object) -> bytes:
    data = element.encode() if isinstance(element, str) else element
    if not isinstance(data, bytes):
        raise InvalidInput(f"an element of a BYTES tensor must be text or bytes, not {type(element).__name__}")
    return _LENGTH.pack(len(data)) + data


def from_wire(datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """Raw bytes → an array of its own memory. Raises UnexpectedAnswer where bytes and shape do not agree."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return _objects(_elements(data, count), shape)
    dtype = FIXED.get(datatype)
    if dtype is None:
        raise UnexpectedAnswer(f"the server sent a tensor of the unknown datatype {datatype!r}")
    if len(data) != count * dtype.itemsize:
        raise UnexpectedAnswer(f"the server sent {len(data)} bytes for a {datatype} tensor of shape {list(shape)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()


def _elements(data: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at + 4 <= len(data):
        end = at + 4 + _LENGTH.unpack_from(data, at)[0]
        elements.append(bytes(data[at + 4 : end]))
        at = end
    if at != len(data) or len(elements) != count:
        raise UnexpectedAnswer(f"the server sent a BYTES tensor that does not hold its {count} elements")
    return elements


def _objects(elements: Sequence[object], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


# --- requests -----------------------------------------------------------------------------------------------------


def encode(
    inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, parameters: Mapping[str, Any] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Named arrays → the body of an inference request and its headers. Answers are asked for in binary."""
    blobs = [(name, datatype_of(array), array) for name, array in inputs.items()]
    data = [to_wire(datatype, array) for _, datatype, array in blobs]
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(raw)},
            }
            for (name, datatype, array), raw in zip(blobs, data, strict=True)
        ],
        "parameters": {"binary_data_output": True, **(parameters or {})},
    }
    if outputs is not None:
        head["outputs"] = [{"name": name} for name in outputs]
    header = _dumps(head)
    headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
    return b"".join([header, *data]), headers


def _dumps(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"a parameter cannot be written as JSON: {error}") from None


def to_json(name: str, array: Array) -> Tensor:
    """An array → a V2 JSON tensor. Raises InvalidInput for what JSON cannot carry: FP16, BF16, NaN, bytes not UTF-8."""
    datatype = datatype_of(array)
    if datatype in NOT_IN_JSON or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise InvalidInput(f"tensor {name!r}: JSON cannot carry {datatype}, infinity or NaN")
    elements = array.reshape(-1).tolist()
    data = [_text(element, name) for element in elements] if datatype == "BYTES" else elements
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": data}


def _text(element: object, name: str) -> str:
    if isinstance(element, str):
        return element
    try:
        return _element(element)[4:].decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"tensor {name!r}: JSON cannot carry bytes that are not UTF-8") from None


# --- answers ------------------------------------------------------------------------------------------------------


def decode(content: bytes, header_length: str | None) -> Response:
    """The body of an inference answer → its outputs. Raises UnexpectedAnswer for one that is not whole."""
    view = memoryview(content)
    try:
        cut = len(view) if header_length is None else int(header_length)
        head = json.loads(content[:cut])
        arrays = _outputs(head["outputs"], view[cut:])
        datatypes = {output["name"]: output["datatype"] for output in head["outputs"]}
        return Response(head["model_name"], str(head.get("model_version", "")), head.get("id", ""), arrays, datatypes)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnexpectedAnswer("the server's answer is no V2 inference response") from None


def _outputs(heads: list[Tensor], blobs: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    at = 0
    for head in heads:
        size = head.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[head["name"]] = from_json(head)
        else:
            arrays[head["name"]] = from_wire(head["datatype"], head["shape"], blobs[at : at + size])
            at += size
    if at != len(blobs):
        raise UnexpectedAnswer(f"the server's answer holds {len(blobs) - at} bytes too many")
    return arrays


def from_json(tensor: Tensor) -> Array:
    """A V2 JSON tensor, nested or flat → an array. Raises ValueError or KeyError where it is none."""
    if tensor["datatype"] == "BYTES":
        flat = _flat(tensor["data"])
        return _objects(
            [element.encode() if isinstance(element, str) else element for element in flat], tensor["shape"]
        )
    return np.array(tensor["data"], dtype=FIXED[tensor["datatype"]]).reshape(tensor["shape"])


def _flat(data: list[Any]) -> list[Any]:
    return [leaf for item in data for leaf in (_flat(item) if isinstance(item, list) else [item])]
