"""ONNX graphs through onnxruntime, on the CPU.

The graph tells the whole signature: symbolic dimensions are -1. What could reach beyond the artifact, tensors that lie
in files beside it, is refused before the runtime sees it, and so are outputs that are no tensors.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec, Version
from workers.merge import Array, Arrays
from workers.messages import Scalar

_DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
"""onnxruntime's element types → V2."""
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Non-zero status code returned (?=while)")
_PLACE = re.compile(
    r"\S+\.(?:cc|cpp|cu|cuh|h|hpp):\d+ "  # a file of its source, then
    r"(?:[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?|\w+) "  # the function with its arguments or without them, and
    r"(?:.*? was false\. )?"  # the condition that did not hold
)
"""What onnxruntime's messages tell of onnxruntime alone."""


class GraphFailed(Exception):
    """onnxruntime's own error is the cause of this one, which says what its message tells of the graph and its
    inputs, and nothing of the runtime's insides."""


def load(path: Path, version: Version, hint: Signature, threads: int, device: str = "cpu") -> OnnxModel:
    """Load a graph. Raises InvalidRequest for what is no sound, self-contained graph of tensors."""
    unshaped = _inspect(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised as well, and what it writes itself is not escaped
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        why = plain(str(error).replace(str(path), "the artifact"))
        raise InvalidRequest(f"onnxruntime refuses the graph: {why}") from error
    return OnnxModel(session, hint, unshaped)


class OnnxModel:
    def __init__(self, session: onnxruntime.InferenceSession, hint: Signature, unshaped: frozenset[str]) -> None:
        """`unshaped`: names of tensors whose rank the graph leaves open; their specs stay out of the signature."""
        outputs = _wanted(session.get_outputs(), hint)
        specs = tuple(_spec(node) for node in outputs)
        self._session: onnxruntime.InferenceSession | None = session
        self._names = [spec.name for spec in specs]
        self._text = [node.name for node in session.get_inputs() if node.type == "tensor(string)"]
        self._values = any("bfloat16" in node.type for node in [*session.get_inputs(), *outputs])
        self.signature = Signature(
            tuple(_spec(node) for node in session.get_inputs()),
            () if unshaped.intersection(self._names) else specs,
        )

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        assert self._session is not None
        for name in self._text:
            inputs[name] = _decoded(name, inputs[name])
        try:
            outputs = self._run_values(inputs) if self._values else self._session.run(self._names, inputs)
        except Exception as error:
            if "Failed to allocate" in str(error) or "bad_alloc" in str(error):
                raise MemoryError(str(error)) from error
            raise GraphFailed(plain(str(error))) from error
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        self._session = None

    def _run_values(self, inputs: Arrays) -> list[Array]:
        """BF16, which numpy cannot name to onnxruntime, goes in and comes out by way of OrtValues."""
        assert self._session is not None
        values = {name: _value(array) for name, array in inputs.items()}
        return [_array(value) for value in self._session.run_with_ort_values(self._names, values)]


def _inspect(path: Path) -> frozenset[str]:
    """Refuse graphs that are not whole or reach outside; returns the outputs whose rank the graph leaves open."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise InvalidRequest("the artifact is no ONNX model: its protobuf cannot be read") from error
    if not model.HasField("graph") or not model.graph.output:
        raise InvalidRequest("the artifact is no ONNX model: it has no graph with outputs")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise InvalidRequest(
                f"the graph keeps its tensor {tensor.name!r} in another file: save the model with its weights inside"
            )
    return frozenset(o.name for o in model.graph.output if not o.type.tensor_type.HasField("shape"))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor constant of a model, in its graph, its functions and their subgraphs."""
    graphs = [model.graph, *(part for info in model.training_info for part in (info.initialization, info.algorithm))]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if not nodes:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _wanted(nodes: list[Any], hint: Signature) -> list[Any]:
    """The graph's outputs, or those that a declared signature names, in its order."""
    by_name = {node.name: node for node in nodes}
    if not hint.outputs or any(spec.name not in by_name for spec in hint.outputs):
        return nodes
    return [by_name[spec.name] for spec in hint.outputs]


def _spec(node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type.removeprefix("tensor(").removesuffix(")"))
    if datatype is None:
        more = ": convert with the option zipmap=False" if "map(" in node.type else ""
        raise InvalidRequest(f"{node.name!r} is {node.type}, but only plain tensors can be served{more}")
    return TensorSpec(node.name, datatype, tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape))


def _decoded(name: str, array: Array) -> Array:
    """Elements of bytes → text, which is what ONNX calls a string."""
    try:
        text = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"tensor {name!r}: this model's text must be UTF-8") from error
    return np.array(text, dtype=object).reshape(array.shape)


def _value(array: Array) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        bits = np.ascontiguousarray(array).view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _array(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, ml_dtypes.bfloat16).reshape(tuple(value.shape()))


def plain(message: str) -> str:
    """A message of onnxruntime's without what it tells of itself: codes, source files, functions, conditions."""
    return _PLACE.sub("", _STATUS.sub("", message[:4000])).split("\n")[0][:400]
