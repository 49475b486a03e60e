"""Estimators in skops: what they answer, and what is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec
from tests.workers.samples import version
from workers.runtimes import sklearn as runtime
from workers.runtimes.base import Model
from workers.runtimes.sklearn import load

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
NOTHING = Signature((), ())


def opened(folder: Path, estimator: BaseEstimator, hint: Signature = NOTHING) -> Model:
    path = folder / "e.skops"
    skops.io.dump(estimator, path)
    return load(path, version(kind="sklearn"), hint, 1)


def told(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec.name: (spec.datatype, spec.shape) for spec in (*model.signature.inputs, *model.signature.outputs)}


def test_a_classifier_answers_labels_and_probabilities(tmp_path: Path) -> None:
    """Labels in their own datatype; probabilities carry the classes as labels."""
    estimator = LogisticRegression(max_iter=500).fit(X, Y)
    model = opened(tmp_path, estimator)
    assert told(model) == {
        "input": ("FP64", (-1, 4)),
        "predict": ("INT64", (-1,)),
        "predict_proba": ("FP64", (-1, 3)),
    }
    assert model.signature.outputs[1].labels == ("0", "1", "2")
    got = model.run({"input": X[:5]}, {})
    assert got["predict"].tolist() == estimator.predict(X[:5]).tolist()
    assert np.allclose(got["predict_proba"], estimator.predict_proba(X[:5]))


def test_labels_of_text_are_bytes(tmp_path: Path) -> None:
    model = opened(tmp_path, make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, NAMES))
    assert told(model)["predict"] == ("BYTES", (-1,))
    assert model.signature.outputs[1].labels == ("setosa", "versicolor", "virginica")


@pytest.mark.parametrize(
    ("estimator", "outputs"),
    [
        (LinearRegression().fit(X, X[:, 0]), {"predict": ("FP64", (-1,))}),
        (LinearRegression().fit(X, X[:, :2]), {"predict": ("FP64", (-1, 2))}),
        (LinearSVC().fit(X, Y), {"predict": ("INT64", (-1,)), "decision_function": ("FP64", (-1, 3))}),
        (KMeans(2, n_init=1).fit(X), {"predict": ("INT32", (-1,))}),
        (StandardScaler().fit(X), {"transform": ("FP64", (-1, 4))}),
    ],
    ids=["regressor", "two targets", "margins", "clusters", "transformer"],
)
def test_others_answer_what_they_offer(
    tmp_path: Path, estimator: BaseEstimator, outputs: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    model = opened(tmp_path, estimator)
    assert told(model) == {"input": ("FP64", (-1, 4)), **outputs}
    assert model.run({"input": X[:2]}, {}).keys() == outputs.keys()


def test_the_hint_names_the_input_and_chooses_outputs(tmp_path: Path) -> None:
    hint = Signature((TensorSpec("iris", "FP32", (1, 4)),), (TensorSpec("predict_proba", "FP64", (-1, 3)),))
    model = opened(tmp_path, LogisticRegression(max_iter=500).fit(X, Y), hint)
    assert told(model) == {"iris": ("FP32", (-1, 4)), "predict_proba": ("FP64", (-1, 3))}


def test_parallel_estimators_are_made_serial(tmp_path: Path) -> None:
    """Starting threads for each prediction costs more than it gives: requests are what runs in parallel."""
    model = opened(tmp_path, KNeighborsClassifier(algorithm="brute", n_jobs=4).fit(X, Y))
    estimator = model._methods["predict"].__self__  # type: ignore[attr-defined]
    assert estimator.n_jobs == 1


def test_untrusted_types_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"not trusted: .*json\.loads"):
        opened(tmp_path, FunctionTransformer(json.loads).fit(X))


def test_trees_are_not_trusted_and_the_refusal_says_what_to_do(tmp_path: Path) -> None:
    """Their nodes are unchecked indices: a made-up tree would read memory that is not its own."""
    with pytest.raises(InvalidRequest, match="ONNX"):
        opened(tmp_path, RandomForestClassifier(2).fit(X, Y))


def test_an_estimator_that_was_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not fitted"):
        opened(tmp_path, LogisticRegression())


def test_what_is_no_estimator_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.skops"
    skops.io.dump({"a": 1}, path)
    with pytest.raises(InvalidRequest, match="dict"):
        load(path, version(kind="sklearn"), NOTHING, 1)


def archive(folder: Path, entries: list[tuple[str, bytes]]) -> Path:
    path = folder / "a.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in entries:
            target.writestr(name, data)
    return path


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sizes that the archive's directory states: reading never goes beyond those."""
    path = archive(tmp_path, [("schema.json", b"{}"), *((f"{n}.npy", bytes(32 << 20)) for n in range(4))])
    monkeypatch.setattr(skops.io, "get_untrusted_types", lambda **_: pytest.fail("it was opened"))
    with pytest.raises(InvalidRequest, match="unpack"):
        load(path, version(kind="sklearn"), NOTHING, 1)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "entries",
    [
        [],
        [("other.json", b"{}")],
        [("schema.json", b"{}"), ("schema.json", b"{}")],
        [("schema.json", b"not json")],
        [("schema.json", b"[" * 100_000)],
        [("schema.json", b"{}")],
        [("schema.json", b'{"__class__": "x", "__module__": "os", "__loader__": "NoSuch", "protocol": 2}')],
    ],
    ids=["empty", "no schema", "duplicate", "no json", "deep", "nothing", "unknown loader"],
)
def test_unsound_archives_are_refused(tmp_path: Path, entries: list[tuple[str, bytes]]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(archive(tmp_path, entries), version(kind="sklearn"), NOTHING, 1)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    """What was checked must be what is read: zip readers differ in which of the two they take."""
    path = tmp_path / "e.skops"
    skops.io.dump(StandardScaler().fit(X), path)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("schema.json", target.read("schema.json"))
    with pytest.raises(InvalidRequest, match="twice"):
        load(path, version(kind="sklearn"), NOTHING, 1)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x04N.", bytes(1000)])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.skops"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="no zip"):
        load(path, version(kind="sklearn"), NOTHING, 1)


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    """An .npy header of 2**40 elements over 8 bytes of data: no allocation, a refusal."""
    path = tmp_path / "e.skops"
    skops.io.dump(StandardScaler().fit(X), path)
    with zipfile.ZipFile(path) as source:
        entries = [(name, source.read(name)) for name in source.namelist()]
    lying = [
        (name, data.replace(b"(4,), }    ", b"(1099511627776,)}"[:11]) if name.endswith(".npy") else data)
        for name, data in entries
    ]
    assert lying != entries
    with pytest.raises(InvalidRequest):
        load(archive(tmp_path, lying), version(kind="sklearn"), NOTHING, 1)


def test_the_limits_are_what_the_module_says() -> None:
    assert runtime.MAX_UNPACKED == 4 << 30
