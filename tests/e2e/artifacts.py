"""Tiny real models for the tests from outside: the bytes of artifacts, and the files of Python classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
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
    file = io.BytesIO()
    onnx.save(model, file)
    return file.getvalue()


def tensor(name: str, datatype: str, *shape: int | str) -> Any:
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


PYTHON = '''\
"""Classes that the tests push."""

import json
import os
import time

import numpy as np


class Parameters:
    """Answers with its request's own parameters, as JSON."""

    def predict(self, inputs, parameters):
        text = json.dumps(parameters, sort_keys=True).encode()
        return {"told": np.array([[text]] * len(inputs["x"]), dtype=object)}


class Passthrough:
    """BYTES arrive as objects of bytes, BF16 as bfloat16; what arrived is told by name."""

    def load(self):
        self.loaded = True

    def predict(self, inputs):
        assert self.loaded and all(isinstance(each, bytes) for each in inputs["text"].reshape(-1))
        assert inputs["half"].dtype.name == "bfloat16", inputs["half"].dtype
        return {"text": inputs["text"], "half": inputs["half"]}


class Fragile:
    """x = 0: answers with its process id; 1: raises; 2: says a word, then takes for ever."""

    def predict(self, inputs):
        order = int(inputs["x"].max())
        if order == 1:
            raise RuntimeError("the secret is in /etc/passwd")
        while order == 2:
            time.sleep(0.05)
        return {"pid": np.full((len(inputs["x"]), 1), os.getpid(), np.int64)}


class Unloadable:
    def load(self):
        raise ValueError("no weights here")

    def predict(self, inputs):
        return inputs
'''
"""A file of classes to push with --allow-code."""


def spec(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


SIGNATURES: dict[str, dict[str, Any]] = {
    "Parameters": {"inputs": [spec("x", "FP32", -1, 1)], "outputs": [spec("told", "BYTES", -1, 1)]},
    "Passthrough": {
        "inputs": [spec("text", "BYTES", -1, 2), spec("half", "BF16", -1, 2)],
        "outputs": [spec("text", "BYTES", -1, 2), spec("half", "BF16", -1, 2)],
    },
    "Fragile": {"inputs": [spec("x", "INT32", -1, 1)], "outputs": [spec("pid", "INT64", -1, 1)]},
    "Unloadable": {"inputs": [spec("x", "FP32", -1, 1)], "outputs": [spec("x", "FP32", -1, 1)]},
}
