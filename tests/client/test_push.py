"""Pushes, by both clients: what becomes of a file, an estimator, a module, a class."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import skops.io
import torch
from onnx import TensorProto, helper
from penstock import errors, onnx_inputs
from penstock.pushing import parcel
from sklearn.linear_model import LogisticRegression

from tests.client.fake import FakeServer, Scripted

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}
SOURCE = """
class Churn:
    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def onnx_model(**inputs: int) -> bytes:
    """An identity of each input, with a weight that is also listed as an input (as old exporters do)."""
    values = [helper.make_tensor_value_info(name, kind, ["n", 2]) for name, kind in inputs.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, ["n", 2]) for name, kind in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0])
    listed = helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1])
    data: bytes = helper.make_model(
        helper.make_graph(nodes, "g", [*values, listed], outputs, [weight])
    ).SerializeToString()
    return data


@pytest.fixture
def churn(tmp_path: Path) -> Path:
    path = tmp_path / "churn.onnx"
    path.write_bytes(onnx_model(x=TensorProto.FLOAT))
    return path


def test_a_file_goes_as_it_is(ps: Any, server: FakeServer, churn: Path) -> None:
    """Manifest first, then the very bytes; the record of the version comes back."""
    record = ps.push(
        churn,
        "churn",
        max_batch=8,
        alias="champion",
        tags={"a": "b"},
        default_deadline_ms=100,
        queue_bound=9,
        warmup=(1, 8),
    )
    assert record["version"] == 1
    assert server.pushed == [
        (
            {
                "format": "onnx",
                "max_batch": 8,
                "alias": "champion",
                "tags": {"a": "b"},
                "default_deadline_ms": 100,
                "queue_bound": 9,
                "warmup": [1, 8],
            },
            churn.read_bytes(),
        )
    ]
    assert server.requests[-1].path == "/api/v1/models/churn/versions"


def test_an_onnx_file_tells_its_inputs(ps: Any, server: FakeServer, churn: Path) -> None:
    """An example without names gets the file's name and datatype; no signature is guessed."""
    ps.push(str(churn), "churn", example=[[1, 2]])
    (manifest, _) = server.pushed[0]
    assert manifest["example"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]
    assert "signature" not in manifest


def test_an_example_that_is_not_the_models_is_refused(ps: Any, churn: Path) -> None:
    """A name that the file does not know, or a value that its datatype cannot hold."""
    with pytest.raises(errors.InvalidInput, match="the example has 'z', the model takes x"):
        ps.push(churn, "churn", example={"z": [[1, 2]]})


def test_an_estimator_becomes_skops(ps: Any, server: FakeServer) -> None:
    """What arrives can be read by skops alone; the signature is read off the example, a few rows of it are sent."""
    X = np.arange(40.0).reshape(20, 2)
    estimator = LogisticRegression().fit(X, np.arange(20) > 9)
    ps.push(estimator, "clf", example=X)
    (manifest, artifact) = server.pushed[0]
    assert manifest["format"] == "sklearn"
    assert manifest["signature"] == {"inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 2]}], "outputs": []}
    assert manifest["example"]["inputs"][0]["shape"] == [8, 2]
    assert (skops.io.loads(artifact).predict(X) == estimator.predict(X)).all()


@pytest.mark.parametrize(
    ("example", "max_batch", "inputs"),
    [
        ([[1, 2]], None, [("input", "INT64", [-1, 2])]),
        (np.zeros((3, 2), "f4"), None, [("input", "FP32", [-1, 2])]),
        (np.zeros((3, 2), "f4"), 0, [("input", "FP32", [3, 2])]),
        ({"a": [["x"]], "b": [[True]]}, None, [("a", "BYTES", [-1, 1]), ("b", "BOOL", [-1, 1])]),
        (np.array([[1, 2.5]], object), None, [("input", "FP64", [-1, 2])]),
        (np.zeros((1, 2), ml_dtypes.bfloat16), None, [("input", "BF16", [-1, 2])]),
        (np.array([[np.nan]]), None, [("input", "FP64", [-1, 1])]),
        (3.5, None, [("input", "FP64", [])]),
    ],
)
def test_the_signature_is_read_off_the_example(example: Any, max_batch: int | None, inputs: list[Any]) -> None:
    """Names, datatypes and shapes, the first dimension variable unless batching is off."""
    manifest = parcel(LogisticRegression(), example=example, max_batch=max_batch).manifest
    found = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in manifest["signature"]["inputs"]]
    assert found == inputs


def test_an_example_that_json_cannot_carry_still_tells_the_signature() -> None:
    """NaN and BF16 give names and shapes, and are not sent."""
    assert "example" not in parcel(LogisticRegression(), example=np.array([[np.nan]])).manifest


def test_a_signature_that_is_given_counts(tmp_path: Path) -> None:
    """The example is fitted to it."""
    path = tmp_path / "m.skops"
    path.write_bytes(b"x")
    manifest = parcel(path, signature=SIGNATURE, example=[[1, 2]]).manifest
    assert manifest["signature"] == SIGNATURE
    assert manifest["example"]["inputs"][0]["datatype"] == "FP32"
    assert manifest["example"]["inputs"][0]["name"] == "x"


@pytest.mark.parametrize("signature", [{}, {"inputs": 3}, {"inputs": [{"name": "x"}]}])
def test_a_signature_that_is_none_is_refused(tmp_path: Path, signature: Any) -> None:
    """Before anything is sent."""
    path = tmp_path / "m.skops"
    path.write_bytes(b"x")
    with pytest.raises(errors.InvalidInput, match="a signature is"):
        parcel(path, signature=signature)


# --- torch ---


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(features)
        return found


def test_a_module_becomes_onnx(capfd: pytest.CaptureFixture[str]) -> None:
    """Of any number of rows, equal to the module, and without the exporter's chatter."""
    net = Net().train()
    made = parcel(net, example=np.zeros((1, 2), "f4"))
    assert made.manifest["format"] == "onnx"
    assert made.manifest["example"]["inputs"][0]["name"] == "features"
    session = onnxruntime.InferenceSession(made.open().read())
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    (found,) = session.run(None, {"features": rows})
    np.testing.assert_allclose(found, net(torch.from_numpy(rows)).detach().numpy(), rtol=1e-5)
    assert net.training
    assert capfd.readouterr() == ("", "")


def test_a_module_with_an_architecture_is_its_weights(ps: Any, server: FakeServer) -> None:
    """Nothing but tensors is sent."""
    net = Net()
    ps.push(net, "mlp", architecture="mlp", example=np.zeros((1, 2), "f4"))
    (manifest, artifact) = server.pushed[0]
    assert (manifest["format"], manifest["entry"]) == ("torch", "mlp")
    assert sorted(safetensors.numpy.load(artifact)) == ["layer.bias", "layer.weight"]


def test_a_module_needs_an_example() -> None:
    """It is exported by running it once."""
    with pytest.raises(errors.InvalidInput, match="give example="):
        parcel(Net())


def test_a_module_that_cannot_be_exported_says_so() -> None:
    """One sentence, whatever the exporter raised."""
    with pytest.raises(errors.InvalidInput, match="cannot export"):
        parcel(Net(), example=np.zeros((1, 5), "f4"))


# --- code ---


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("churn_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["churn_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(SOURCE)
    return path


def test_code_is_the_files_source(ps: Any, server: FakeServer, source: Path) -> None:
    """By path and class, by path alone where there is one class, or by the class itself."""
    module = loaded(source)
    for model in (f"{source}:Churn", source, module.Churn):
        ps.push(model, "churn", signature=SIGNATURE, allow_code=True)
        (manifest, artifact) = server.pushed[-1]
        assert (manifest["format"], manifest["entry"], manifest["allow_code"]) == ("python", "Churn", True)
        assert artifact.decode() == SOURCE
    del sys.modules["churn_models"]


def test_code_must_be_allowed(ps: Any, server: FakeServer, source: Path, tmp_path: Path) -> None:
    """Without allow_code nothing that runs code is sent."""
    (tmp_path / "m.pt2").write_bytes(b"x")
    for path in (f"{source}:Churn", tmp_path / "m.pt2"):
        with pytest.raises(errors.InvalidInput, match=r"--allow-code"):
            ps.push(path, "m", signature=SIGNATURE)
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no class with a predict method"),
        (SOURCE + SOURCE.replace("Churn", "Other"), "defines 2 classes"),
        ("def :", "is no Python file"),
    ],
)
def test_a_file_must_tell_its_class(tmp_path: Path, text: str, message: str) -> None:
    """None or several: the caller must say which."""
    path = tmp_path / "models.py"
    path.write_text(text)
    with pytest.raises(errors.InvalidInput, match=message):
        parcel(path, allow_code=True)


def test_a_class_needs_a_file() -> None:
    """One typed into a notebook, or nested in a function, has no source to send."""

    class Nested:
        pass

    with pytest.raises(errors.InvalidInput, match="stands in no file of its own"):
        parcel(Nested, allow_code=True)


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.pkl", "skops"),
        ("m.joblib", "skops"),
        ("m.pt", "safetensors"),
        ("m.h5", "onnx"),
        ("m.txt", r"ends in one of \.onnx"),
        ("missing.onnx", "there is no file"),
        ("m.safetensors", "--architecture"),
        ("models.py:no-name", "no class name"),
    ],
)
def test_files_that_are_no_models_are_refused(tmp_path: Path, name: str, message: str) -> None:
    """The sentence says what to do instead; a pickle is never read."""
    if "missing" not in name:
        (tmp_path / name.partition(":")[0]).write_bytes(b"x")
    with pytest.raises(errors.InvalidInput, match=message):
        parcel(str(tmp_path / name), allow_code=True)


def test_other_objects_are_refused() -> None:
    """By the name of their type."""
    with pytest.raises(errors.InvalidInput, match="cannot push a dict"):
        parcel({})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushing an estimator needs skops where it is pushed."""
    monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(errors.InvalidInput, match="install skops"):
        parcel(LogisticRegression())


def test_a_version_that_would_not_load_says_why(ps: Any, server: FakeServer, churn: Path) -> None:
    """The server's reason is the error."""
    server.answers("POST /api/v1/models/churn/versions", Scripted(400, {"error": "no such operator", "version": 3}))
    with pytest.raises(errors.BadRequest, match="no such operator"):
        ps.push(churn, "churn")


# --- sending ---


def test_large_files_are_streamed(ps: Any, server: FakeServer, tmp_path: Path) -> None:
    """In pieces, with a report after each; the size is told before."""
    path = tmp_path / "large.onnx"
    path.write_bytes(onnx_model(x=TensorProto.FLOAT))
    graph = onnx.load(path)
    graph.graph.initializer.append(helper.make_tensor("pad", TensorProto.UINT8, [1 << 20], bytes(1 << 20), raw=True))
    path.write_bytes(graph.SerializeToString())
    steps: list[tuple[int, int]] = []
    ps.push(path, "large", progress=lambda done, of: steps.append((done, of)), wait=5)
    size = path.stat().st_size
    assert server.pushed[0][1] == path.read_bytes()
    assert steps[-1] == (size, size)
    assert len(steps) > 10
    assert server.requests[-1].path.endswith("?wait=5")
    assert int(server.requests[-1].headers["content-length"]) > size


# --- the ONNX reader ---


def test_inputs_of_an_onnx_model() -> None:
    """Names and datatypes of the inputs, weights not among them."""
    data = onnx_model(a=TensorProto.FLOAT, b=TensorProto.STRING, c=TensorProto.BFLOAT16, d=TensorProto.COMPLEX64)
    assert onnx_inputs.declared(memoryview(data)) == {"a": "FP32", "b": "BYTES", "c": "BF16", "d": ""}


def test_every_onnx_type_with_a_v2_name_is_known() -> None:
    """The numbers are those of onnx itself."""
    names = {
        "FP32": "FLOAT",
        "FP64": "DOUBLE",
        "FP16": "FLOAT16",
        "BF16": "BFLOAT16",
        "BYTES": "STRING",
    }
    expected = {TensorProto.DataType.Value(names.get(name, name)): name for name in onnx_inputs.DATATYPES.values()}
    assert expected == onnx_inputs.DATATYPES


@pytest.mark.parametrize("data", [b"", b"\x00", b"garbage", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20, bytes(100)])
def test_files_that_are_no_onnx_are_refused(tmp_path: Path, data: bytes) -> None:
    """Whatever their bytes are."""
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(errors.InvalidInput, match="is no ONNX model"):
        onnx_inputs.read(path)
