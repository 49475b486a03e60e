"""The inputs that an ONNX file declares, read off its protobuf fields without the onnx package.

Only lengths are followed (weights are skipped, not read), so a file of gigabytes takes as long as a small one.
Field numbers are those of onnx.proto: ModelProto.graph = 7; GraphProto.initializer = 5, .input = 11;
ValueInfoProto.name = 1, .type = 2; TypeProto.tensor_type = 1; TypeProto.Tensor.elem_type = 1; TensorProto.name = 8.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import InvalidInput

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""TensorProto.DataType → V2; others have no V2 name."""


def read(path: Path) -> dict[str, str]:
    """Datatype of each input by name, "" for one without a V2 name. Raises InvalidInput where it is no ONNX file."""
    with path.open("rb") as file:
        try:
            return declared(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        except ValueError:
            raise InvalidInput(f"{path} is no ONNX model") from None


def declared(data: memoryview) -> dict[str, str]:
    """As `read`, of the bytes of a model. Raises ValueError where they are none."""
    inputs: dict[str, str] = {}
    weights: set[str] = set()
    for graph in _all(data, 7):
        for number, part in _fields(graph):
            if number == 11:
                inputs[_text(part, 1)] = _datatype(part)
            elif number == 5:
                weights.add(_text(part, 8))
    if not inputs:
        raise ValueError("no graph with inputs")
    return {name: datatype for name, datatype in inputs.items() if name not in weights}


def _datatype(info: memoryview) -> str:
    for kind in _all(info, 2):
        for tensor in _all(kind, 1):
            for number, value in _numbers(tensor):
                if number == 1:
                    return DATATYPES.get(value, "")
    return ""


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(part).decode() for part in _all(message, wanted)), "")


def _all(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (part for number, part in _fields(message) if number == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field."""
    for number, value in _walk(message):
        if isinstance(value, memoryview):
            yield number, value


def _numbers(message: memoryview) -> Iterator[tuple[int, int]]:
    for number, value in _walk(message):
        if isinstance(value, int):
            yield number, value


def _walk(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if at + length > len(message):
            raise ValueError("a field runs past the end")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number runs past the end")
