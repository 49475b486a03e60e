"""ONNX graphs: loaded, read, run; refused where they reach outside or are no graphs of tensors."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from core.datatypes import datatype_of
from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec
from tests.graphs import ELEMENTS, graph, identity, tensor
from tests.workers.samples import doubler, rows, saved, version
from workers.merge import Array
from workers.runtimes.base import Model
from workers.runtimes.onnx import GraphFailed, load, plain

NOTHING = Signature((), ())


X, Y = tensor("x", "FP32", "n", "m"), tensor("y", "FP32", "k", "l")
W = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
TO = numpy_helper.from_array(np.array([-1, 3], np.int64), "to")


def opened(path: Path, hint: Signature = NOTHING) -> Model:
    return load(path, version(), hint, 1)


def test_the_graph_tells_its_signature(tmp_path: Path) -> None:
    """Symbolic dimensions are -1, fixed ones stand."""
    model = opened(doubler(tmp_path))
    assert model.signature == Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))
    assert model.run({"x": rows(1, 2)}, {})["y"].tolist() == rows(2, 4).tolist()
    assert opened(doubler(tmp_path, 3)).signature.inputs[0].shape == (3, 4)


@pytest.mark.parametrize("datatype", ELEMENTS)
def test_every_datatype_passes_through(tmp_path: Path, datatype: str) -> None:
    """Identity, for each datatype of V2: read-only views of a request's bytes included."""
    model = opened(saved(tmp_path / "i.onnx", identity(datatype)))
    assert model.signature.inputs[0].datatype == datatype
    sent = sample(datatype).reshape(3, 1)
    sent.setflags(write=False)
    got = model.run({"x": sent}, {})["y"]
    assert datatype_of(got.dtype).name == datatype
    assert [e.encode() if isinstance(e, str) else e for e in got.flat] == list(sent.flat)


def sample(datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([b"a", "ä".encode(), b""], dtype=object)
    dtype = {"BF16": np.dtype(ml_dtypes.bfloat16), "FP16": np.dtype(np.float16), "BOOL": np.dtype(bool)}
    name = {"FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())
    return np.array([0, 1, 1], dtype=dtype.get(datatype) or np.dtype(name))


def test_text_that_is_no_utf8_is_the_callers_fault(tmp_path: Path) -> None:
    path = saved(tmp_path / "i.onnx", identity("BYTES"))
    with pytest.raises(InvalidRequest, match="'x'"):
        opened(path).run({"x": np.array([b"\xff"], dtype=object)}, {})


def test_only_declared_outputs_are_computed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    x, y, z = (tensor(name, "FP32", "n") for name in "xyz")
    model = opened(
        saved(tmp_path / "two.onnx", graph(nodes, [x], [y, z])), Signature((), (TensorSpec("z", "FP32", (-1,)),))
    )
    assert list(model.run({"x": np.ones(2, np.float32)}, {})) == ["z"]
    assert [o.name for o in model.signature.outputs] == ["z"]


def test_an_output_of_unknown_rank_is_left_to_be_found_out(tmp_path: Path) -> None:
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"])
    inputs = [tensor("x", "FP32", "n", 4), tensor("s", "INT64", "k")]
    unknown = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    assert opened(saved(tmp_path / "r.onnx", graph([reshape], inputs, [unknown]))).signature.outputs == ()


def external(inside: str) -> bytes:
    """A graph one of whose constants lies in another file, at the place named."""
    constant = helper.make_tensor("w", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    constant.ClearField("float_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="../../../etc/passwd")
    x, y = tensor("x", "FP32", "n", 4), tensor("y", "FP32", "n", 4)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if inside == "initializer":
        return graph([add], [x], [y], [constant])
    node = helper.make_node("Constant", [], ["w"], value=constant)
    if inside == "attribute":
        return graph([node, add], [x], [y])
    if inside == "function":
        function = helper.make_function("ours", "F", ["x"], ["y"], [node, add], [helper.make_opsetid("", 17)])
        made = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="ours")], "g", [x], [y])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
        model = helper.make_model(made, functions=[function], opset_imports=opsets, ir_version=9)
        return bytes(model.SerializeToString())
    held = helper.make_graph([node], "held", [], [tensor("w", "FP32", 4)])
    if inside == "list of graphs":
        return graph([helper.make_node("Held", ["x"], ["y"], graphs=[held])], [x], [y])
    chosen = helper.make_node("If", ["c"], ["w"], then_branch=held, else_branch=held)
    return graph([chosen, add], [tensor("c", "BOOL"), x], [y])


@pytest.mark.parametrize("inside", ["initializer", "attribute", "subgraph", "list of graphs", "function"])
def test_tensors_in_other_files_are_refused(tmp_path: Path, inside: str) -> None:
    """Wherever in the graph they hide; the message names the tensor, not the path."""
    with pytest.raises(InvalidRequest, match="'w' in another file") as caught:
        opened(saved(tmp_path / "e.onnx", external(inside)))
    assert "passwd" not in caught.value.message


def test_outputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    """As scikit-learn's converters make them: a sequence of maps. The message says how to avoid it."""
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    output = helper.make_value_info("p", helper.make_sequence_type_proto(map_type))
    node = helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    made = helper.make_graph([node], "g", [tensor("x", "FP32", "n", 4)], [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "z.onnx"
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=9), str(path))
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
    node = helper.make_node("NoSuchThing", ["x"], ["y"])
    path = saved(tmp_path / "u.onnx", graph([node], [tensor("x", "FP32", "n")], [tensor("y", "FP32", "n")]))
    with pytest.raises(InvalidRequest, match="NoSuchThing") as caught:
        opened(path)
    assert str(tmp_path) not in caught.value.message


FAILURES = {
    "Reshape": (graph([helper.make_node("Reshape", ["x", "to"], ["y"], name="r")], [X], [Y], [TO]), "shape:{2,4}"),
    "Add": (graph([helper.make_node("Add", ["x", "w"], ["y"])], [X], [Y], [W]), "3 by 4"),
    "MatMul": (graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [X], [Y], [W]), "dimension mismatch"),
    "Concat": (graph([helper.make_node("Concat", ["x", "w"], ["y"], axis=0)], [X], [Y], [W]), "dimensions of 3 and 4"),
}


@pytest.mark.parametrize("operator", FAILURES)
def test_a_failure_says_what_of_the_graph_failed(tmp_path: Path, operator: str) -> None:
    """The node and the shapes, no source file, function or condition of the runtime; its own error is the cause."""
    artifact, shapes = FAILURES[operator]
    model = opened(saved(tmp_path / "f.onnx", artifact))
    with pytest.raises(GraphFailed) as caught:
        model.run({"x": rows(1, 2)}, {})
    said = str(caught.value)
    assert said.startswith(f"while running {operator} node")
    assert shapes in said
    assert not [each for each in (".h:", "::", "/", "was false", "Error", "onnxruntime") if each in said], said
    assert "onnxruntime" in type(caught.value.__cause__).__module__


def test_what_onnxruntime_tells_of_itself_is_left_out() -> None:
    """Functions without arguments, with nested ones, const; with a condition or without one."""
    for place in (
        "concat.h:135 Prepare ",
        "/src/ort/x.cc:12 void ort::Foo(const X&, std::function<void (int)>) ",
        "/src/ort/x.cc:12 ort::Foo::Bar(int) const a != 0 && (b % a) == 0 was false. ",
    ):
        assert plain(f"[ONNXRuntimeError] : 1 : FAIL : {place}Input shape:{{1}}\n") == "Input shape:{1}"
