"""Tiny real ONNX models, as the bytes of their artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""V2 datatype → ONNX element type."""


def graph(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any] = ()) -> bytes:
    """The bytes of an ONNX model."""
    made = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(constants))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def tensor(name: str, datatype: str, *shape: int | str) -> Any:
    """An input or output; dimensions that are words are free."""
    return helper.make_tensor_value_info(name, ELEMENTS[datatype], list(shape))


def identity(datatype: str = "FP32", width: int | str = "m") -> bytes:
    """y = x over [rows, width]."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return graph([node], [tensor("x", datatype, "n", width)], [tensor("y", datatype, "n", width)])


def numbered(number: int, megabytes: int = 0) -> bytes:
    """Answers every row x FP32[rows, 1] with x + number, and the number itself beside it; weighs `megabytes`."""
    ballast = np.full(max(1, megabytes << 18), number, np.float32)
    constants = [
        numpy_helper.from_array(np.array([number], np.float32), "number"),
        numpy_helper.from_array(np.array([0], np.float32), "zero"),
        numpy_helper.from_array(ballast, "ballast"),
    ]
    nodes = [
        helper.make_node("Add", ["x", "number"], ["y"]),
        helper.make_node("Mul", ["x", "zero"], ["none"]),
        helper.make_node("Cast", ["none"], ["first"], to=TensorProto.INT64),
        helper.make_node("Gather", ["ballast", "first"], ["version"]),
    ]
    outputs = [tensor("y", "FP32", "n", 1), tensor("version", "FP32", "n", 1)]
    return graph(nodes, [tensor("x", "FP32", "n", 1)], outputs, constants)
