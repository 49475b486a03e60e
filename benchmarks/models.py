"""Models that are measured, and requests for them. Weights are random: nobody looks at the answers' values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import orjson
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2 as pb

Rows = NDArray[np.float32]
BINARY_LENGTH = "Inference-Header-Content-Length"
PYTHON_PRODUCT = """\
import numpy as np


class Product:
    def load(self) -> None:
        self.weights = np.random.default_rng(0).standard_normal((4, 4), dtype=np.float32)

    def predict(self, inputs):
        return {"y": inputs["x"] @ self.weights}
"""
PYTHON_DEVICE = """\
import time


class Device:
    def predict(self, inputs):
        time.sleep(0.020)
        return {"y": inputs["x"]}
"""
"""Stands for an accelerator: each execution takes 20 ms whatever its size, and no CPU."""
PYTHON_ROWS = PYTHON_DEVICE.replace("0.020", '0.020 + 0.002 * len(inputs["x"])')
"""The same, but for 2 ms more of each row."""
VECTOR_SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}


def product(path: Path) -> Path:
    """FP32[N,4] → FP32[N,4], one 4×4 product."""
    return _save(path, [4], [4], [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": product_weights()})


def product_weights() -> Rows:
    """The product's own: FP32[4,4]."""
    return _random(4, 4)


def mlp(path: Path, width: int = 2048, layers: int = 10) -> Path:
    """FP32[N,64] → FP32[N,4] through `layers` dense layers: 2·width² operations a row and layer."""
    nodes = []
    weights = {"w0": _random(64, width)}
    last = "x"
    for layer in range(layers):
        if layer:
            weights[f"w{layer}"] = _random(width, width)
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"h{layer}"]))
        nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    weights["out"] = _random(width, 4)
    nodes.append(helper.make_node("MatMul", [last, "out"], ["y"]))
    return _save(path, [64], [4], nodes, weights)


def corner(path: Path) -> Path:
    """FP32[N,3,224,224] → FP32[N,1,1,4], its first numbers: all that is measured is how the image gets there."""
    bounds = {
        "from": np.zeros(3, np.int64),
        "to": np.array([1, 1, 4], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
    }
    node = helper.make_node("Slice", ["x", "from", "to", "axes"], ["y"])
    return _save(path, [3, 224, 224], [1, 1, 4], [node], bounds)


def whole(path: Path) -> Path:
    """FP32[N,3,224,224] → the same: the image goes there and comes back."""
    return _save(path, [3, 224, 224], [3, 224, 224], [helper.make_node("Identity", ["x"], ["y"])], {})


def _random(*shape: int) -> Rows:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))


def _save(
    path: Path,
    row: list[int],
    answer: list[int],
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, NDArray[np.float32] | NDArray[np.int64]],
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *row])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *answer])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


# --- requests for them: one tensor `x` in each encoding -----------------------------------------------------------


def json_body(x: Rows) -> bytes:
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]})


def binary_body(x: Rows) -> tuple[bytes, dict[str, str]]:
    """Body and headers; the answer is asked for in binary too."""
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return header + x.tobytes(), {BINARY_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}


def grpc_request(model: str, x: Rows) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=x.shape)
    return bytes(
        pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[x.tobytes()]).SerializeToString()
    )
