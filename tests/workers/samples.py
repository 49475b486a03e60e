"""Versions, batches and tiny real models for the tests of workers and transports."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from core.datatypes import DATATYPES, to_wire
from repository.records import Signature, TensorSpec, Version
from tests.arrays import to_array
from tests.graphs import graph, tensor
from workers.merge import Array
from workers.messages import Batch, Column, Failure, Member, Output

FOUR = TensorSpec("x", "FP32", (-1, 4))
DOUBLED = TensorSpec("y", "FP32", (-1, 4))


def version(
    *,
    kind: str = "onnx",
    inputs: Sequence[TensorSpec] = (FOUR,),
    outputs: Sequence[TensorSpec] = (DOUBLED,),
    max_batch: int = 32,
    model: str = "m",
    number: int = 1,
    **more: Any,
) -> Version:
    return Version(
        model=model,
        version=number,
        owner="tests",
        format=kind,
        digest=more.pop("digest", "0" * 64),
        size=1,
        signature=Signature(tuple(inputs), tuple(outputs)),
        max_batch=max_batch,
        default_deadline_ms=more.pop("default_deadline_ms", 1000),
        queue_bound=10,
        created=0.0,
        **more,
    )


def batch_of(
    *arrays: Array,
    number: int = 1,
    deadlines: Sequence[int] = (),
    parameters: dict[str, Any] | None = None,
    name: str = "x",
    datatype: str = "FP32",
) -> Batch:
    """A batch of one column, one member for each array."""
    row = DATATYPES[datatype]
    pieces = [bytes(to_wire(row, array)) for array in arrays]
    dead = list(deadlines) or [0] * len(arrays)
    members = [Member(array.shape[0], deadline) for array, deadline in zip(arrays, dead, strict=True)]
    return Batch(number, True, members, [Column(name, datatype, arrays[0].shape[1:], list(pieces))], parameters or {})


def rows(*values: float) -> Array:
    """FP32[len(values), 4], each row filled with its value."""
    return np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)


def array_of(result: list[Output] | Failure, index: int = 0) -> Array:
    """The array that a member got; fails on a failure."""
    assert isinstance(result, list), result
    output = result[index]
    return to_array(DATATYPES[output.datatype], output.shape, output.data, output.name)


def failure_in(result: list[Output] | Failure) -> Failure:
    assert isinstance(result, Failure), result
    return result


def saved(path: Path, artifact: bytes) -> Path:
    path.write_bytes(artifact)
    return path


def doubler(folder: Path, rows_: int | str = "n", datatype: str = "FP32", name: str = "double.onnx") -> Path:
    """y = x + x over [rows, 4]."""
    add = helper.make_node("Add", ["x", "x"], ["y"])
    x, y = (tensor(each, datatype, rows_, 4) for each in ("x", "y"))
    return saved(folder / name, graph([add], [x], [y]))


FOREVER = 777


def looper(folder: Path) -> Path:
    """As `doubler`, but it never ends where the largest value is FOREVER."""
    on, still = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still"))
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    before, after = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("before", "after"))
    same = [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["before"], ["after"])]
    body = helper.make_graph(same, "body", [turn, on, before], [still, after])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Equal", ["largest", "forever"], ["go"]),
        helper.make_node("Loop", ["", "go", "x"], ["z"], body=body),
        helper.make_node("Add", ["z", "z"], ["y"]),
    ]
    x, y = (tensor(each, "FP32", "n", 4) for each in ("x", "y"))
    forever = numpy_helper.from_array(np.array(FOREVER, np.float32), "forever")
    return saved(folder / "loop.onnx", graph(nodes, [x], [y], [forever]))


def python_file(folder: Path, source: str, name: str = "model.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path
