"""ONNX graphs: loaded, read, run; refused where they reach outside or are no graphs of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from core.datatypes import datatype_of
from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec
from tests.workers.samples import doubler, onnx_graph, rows, version
from workers.merge import Array
from workers.runtimes.base import Model
from workers.runtimes.onnx import load

NOTHING = Signature((), ())
KINDS = {
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


def opened(path: Path, hint: Signature = NOTHING) -> Model:
    return load(path, version(), hint, 1)


def info(name: str, kind: int, shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def test_the_graph_tells_its_signature(tmp_path: Path) -> None:
    """Symbolic dimensions are -1, fixed ones stand."""
    model = opened(doubler(tmp_path))
    assert model.signature == Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
    assert model.run({"x": rows(1, 2)}, {})["y"].tolist() == rows(2, 4).tolist()
    assert opened(doubler(tmp_path, 3)).signature.inputs[0].shape == (3, 4)


@pytest.mark.parametrize("datatype", KINDS)
def test_every_datatype_passes_through(tmp_path: Path, datatype: str) -> None:
    """Identity, for each datatype of V2: read-only views of a request's bytes included."""
    kind = KINDS[datatype]
    path = onnx_graph(
        tmp_path / "i.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", kind, ["n"])],
        [info("y", kind, ["n"])],
    )
    model = opened(path)
    assert model.signature.inputs[0].datatype == datatype
    sent = sample(datatype)
    sent.setflags(write=False)
    got = model.run({"x": sent}, {})["y"]
    assert datatype_of(got.dtype).name == datatype
    assert [e.encode() if isinstance(e, str) else e for e in got.tolist()] == sent.tolist()


def sample(datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([b"a", "ä".encode(), b""], dtype=object)
    dtype = {"BF16": np.dtype(ml_dtypes.bfloat16), "FP16": np.dtype(np.float16), "BOOL": np.dtype(bool)}
    name = {"FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())
    return np.array([0, 1, 1], dtype=dtype.get(datatype) or np.dtype(name))


def test_text_that_is_no_utf8_is_the_callers_fault(tmp_path: Path) -> None:
    kind = TensorProto.STRING
    path = onnx_graph(
        tmp_path / "i.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", kind, ["n"])],
        [info("y", kind, ["n"])],
    )
    with pytest.raises(InvalidRequest, match="'x'"):
        opened(path).run({"x": np.array([b"\xff"], dtype=object)}, {})


def test_only_declared_outputs_are_computed(tmp_path: Path) -> None:
    path = onnx_graph(
        tmp_path / "two.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        [info("x", TensorProto.FLOAT, ["n"])],
        [info("y", TensorProto.FLOAT, ["n"]), info("z", TensorProto.FLOAT, ["n"])],
    )
    model = opened(path, Signature((), (TensorSpec("z", "FP32", (-1,)),)))
    assert list(model.run({"x": np.ones(2, np.float32)}, {})) == ["z"]
    assert [o.name for o in model.signature.outputs] == ["z"]


def test_an_output_of_unknown_rank_is_left_to_be_found_out(tmp_path: Path) -> None:
    path = onnx_graph(
        tmp_path / "r.onnx",
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [info("x", TensorProto.FLOAT, ["n", 4]), info("s", TensorProto.INT64, ["k"])],
        [info("y", TensorProto.FLOAT, None)],
    )
    assert opened(path).signature.outputs == ()


def external(folder: Path, inside: str) -> Path:
    """A graph one of whose constants lies in another file, at the place named."""
    constant = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    constant.ClearField("float_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../../../etc/passwd")
    x, y = info("x", TensorProto.FLOAT, ["n", 4]), info("y", TensorProto.FLOAT, ["n", 4])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if inside == "initializer":
        return onnx_graph(folder / "e.onnx", [add], [x], [y], [constant])
    node = helper.make_node("Constant", [], ["w"], value=constant)
    if inside == "attribute":
        return onnx_graph(folder / "e.onnx", [node, add], [x], [y])
    if inside == "list of graphs":
        held = helper.make_graph([node], "held", [], [info("w", TensorProto.FLOAT, [4])])
        return onnx_graph(folder / "e.onnx", [helper.make_node("Held", ["x"], ["y"], graphs=[held])], [x], [y])
    if inside == "function":
        function = helper.make_function("ours", "F", ["x"], ["y"], [node, add], [helper.make_opsetid("", 17)])
        graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="ours")], "g", [x], [y])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
        onnx.save(
            helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9), str(folder / "e.onnx")
        )
        return folder / "e.onnx"
    branch = helper.make_graph([node], "branch", [], [info("w", TensorProto.FLOAT, [4])])
    chosen = helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch)
    return onnx_graph(folder / "e.onnx", [chosen, add], [info("c", TensorProto.BOOL, []), x], [y])


@pytest.mark.parametrize("inside", ["initializer", "attribute", "subgraph", "list of graphs", "function"])
def test_tensors_in_other_files_are_refused(tmp_path: Path, inside: str) -> None:
    """Wherever in the graph they hide; the message names the tensor, not the path."""
    with pytest.raises(InvalidRequest, match="'w' in another file") as caught:
        opened(external(tmp_path, inside))
    assert "passwd" not in caught.value.message


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    """As scikit-learn's converters make them: a sequence of maps. The message says how to avoid it."""
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    output = helper.make_value_info("p", helper.make_sequence_type_proto(map_type))
    node = helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    graph = helper.make_graph([node], "g", [info("x", TensorProto.FLOAT, ["n", 4])], [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "z.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    with pytest.raises(InvalidRequest, match=r"'p' is seq\(map.*zipmap=False"):
        opened(path)


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 100, b"PK\x03\x04", b"ORTM" * 9, b"\x80\x04.", b"\x3a\xff\xff\xff\x0f"]
)
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest) as caught:
        opened(path)
    assert str(tmp_path) not in caught.value.message


def test_a_truncated_graph_is_refused(tmp_path: Path) -> None:
    path = doubler(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InvalidRequest):
        opened(path)


def test_an_unknown_operator_is_refused_by_name(tmp_path: Path) -> None:
    path = onnx_graph(
        tmp_path / "u.onnx",
        [helper.make_node("NoSuchThing", ["x"], ["y"])],
        [info("x", TensorProto.FLOAT, ["n"])],
        [info("y", TensorProto.FLOAT, ["n"])],
    )
    with pytest.raises(InvalidRequest, match="NoSuchThing") as caught:
        opened(path)
    assert str(tmp_path) not in caught.value.message
