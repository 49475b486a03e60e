"""Predictions, by both clients: numpy in, numpy out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock import errors
from penstock.predicting import split

from tests.client.fake import Arrays, FakeModel, FakeServer, Request, Scripted, decoded

ROWS = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}


def doubled(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


def classes(inputs: Arrays) -> Arrays:
    return {"predict_proba": inputs["x"], "predict": inputs["x"].argmax(axis=1)}


@pytest.fixture(autouse=True)
def models(server: FakeServer) -> None:
    server.models["double"] = FakeModel([ROWS], doubled, max_batch=4)
    server.models["classes"] = FakeModel([ROWS], classes)
    server.models["sum"] = FakeModel(
        [ROWS, {"name": "n", "datatype": "INT64", "shape": [-1, 2]}],
        lambda inputs: {"a": inputs["x"] + inputs["n"], "b": inputs["n"]},
    )


def test_an_array_in_is_an_array_out(ps: Any) -> None:
    """One input, one output: no names anywhere; float64 and lists become what the model declares."""
    for values in ([[1, 2], [3, 4]], np.array([[1.0, 2.0], [3.0, 4.0]])):
        found = ps.predict("double", values)
        assert found.dtype == np.float32
        assert found.tolist() == [[2, 4], [6, 8]]


def test_several_outputs(ps: Any) -> None:
    """The one called `predict` alone, or one that is asked for; else all of them by name."""
    assert ps.predict("classes", [[1, 2]]).tolist() == [1]
    assert ps.predict("classes", [[1, 2]], outputs=["predict_proba"]).tolist() == [[1, 2]]
    both = ps.predict("classes", [[1, 2]], outputs=["predict", "predict_proba"])
    assert sorted(both) == ["predict", "predict_proba"]
    assert sorted(ps.predict("sum", {"x": [[1, 2]], "n": [[3, 4]]})) == ["a", "b"]


def test_infer_tells_all(ps: Any, server: FakeServer) -> None:
    """Every output, the version that answered and the datatypes."""
    found = ps.infer("classes", [[1, 2]], version="1", parameters={"priority": 2})
    assert sorted(found.outputs) == ["predict", "predict_proba"]
    assert (found.model, found.version, found.datatypes["predict"]) == ("classes", "1", "INT64")
    assert server.inferences[-1].path == "/v2/models/classes/versions/1/infer"
    assert decoded(server.inferences[-1])[0]["parameters"]["priority"] == 2


def test_what_a_model_takes_is_asked_once(ps: Any, server: FakeServer) -> None:
    """The second prediction is one request."""
    ps.predict("double", [[1, 2]])
    before = len(server.requests)
    ps.predict("double", [[1, 2]])
    assert len(server.requests) == before + 1


def test_a_changed_model_is_asked_again(ps: Any, server: FakeServer) -> None:
    """A new version with another datatype or name: the caller notices nothing."""
    ps.predict("double", [[1, 2]])
    server.models["double"] = FakeModel(
        [{"name": "z", "datatype": "FP64", "shape": [-1, 2]}], lambda inputs: {"y": inputs["z"] * 3}
    )
    assert ps.predict("double", [[1, 2]]).tolist() == [[3, 6]]
    server.models["double"] = FakeModel([ROWS], doubled)
    assert ps.predict("double", {"x": [[1, 2]]}).tolist() == [[2, 4]]


def test_a_bad_request_is_not_repeated(ps: Any, server: FakeServer) -> None:
    """When the model is as it was, its refusal goes to the caller."""
    ps.predict("double", [[1, 2]])
    server.answers("POST /v2/models/double/infer", Scripted(400, {"error": "no"}), Scripted(400, {"error": "no"}))
    with pytest.raises(errors.BadRequest, match="no"):
        ps.predict("double", [[1, 2]])
    assert len(server.inferences) == 2


def test_more_rows_than_a_batch_go_in_several_requests(ps: Any, server: FakeServer) -> None:
    """Ten rows for a model of four: three requests, one answer, in order."""
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    assert (ps.predict("double", rows) == rows * 2).all()
    assert [decoded(request)[1]["x"].shape[0] for request in server.inferences] == [4, 4, 2]


def test_one_version_answers_all_rows(ps: Any, server: FakeServer) -> None:
    """A version that changes between the pieces: all are sent anew."""

    def change(request: Request) -> None:
        server.models["double"].version = "2" if len(server.inferences) > 1 else "1"

    server.after = change
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    found = ps.infer("double", rows)
    assert found.version == "2"
    assert (found.outputs["y"] == rows * 2).all()
    assert len(server.inferences) == 6


def test_a_version_that_never_settles_is_an_error(ps: Any, server: FakeServer) -> None:
    """The repetition ends."""

    def change(request: Request) -> None:
        server.models["double"].version = str(len(server.inferences))

    server.after = change
    with pytest.raises(errors.Unavailable, match="kept changing"):
        ps.predict("double", np.zeros((10, 2)))


def test_rows_are_split_only_where_they_are_rows() -> None:
    """A model without batching, or tensors with different first dimensions, are left alone."""
    x, y = np.zeros((6, 2)), np.zeros((6,))
    assert [len(piece["x"]) for piece in split({"x": x, "y": y}, 4)] == [4, 2]
    for inputs, most in (({"x": x}, 0), ({"x": x, "y": np.zeros(3)}, 4), ({"x": np.array(1.0)}, 4)):
        assert split(inputs, most) == [inputs]
    assert len(split({"x": np.zeros((0, 2))}, 4)) == 1


def test_lossy_values_never_leave(ps: Any, server: FakeServer) -> None:
    """An integer input refuses fractions, and nothing is sent."""
    with pytest.raises(errors.InvalidInput, match=r"'n': 0\.5"):
        ps.predict("sum", {"x": [[1, 2]], "n": [[0.5, 1]]})
    assert server.inferences == []


def test_text_comes_back_as_bytes(ps: Any, server: FakeServer) -> None:
    """BYTES both ways."""
    server.models["echo"] = FakeModel(
        [{"name": "t", "datatype": "BYTES", "shape": [-1]}], lambda inputs: {"t": inputs["t"]}
    )
    assert ps.predict("echo", ["ä", b"\xff"]).tolist() == ["ä".encode(), b"\xff"]


def test_a_timeout_is_the_servers_deadline_too(ps: Any, server: FakeServer) -> None:
    """In microseconds, as the schedule policy has it, unless a parameter says otherwise."""
    ps.predict("double", [[1, 2]], timeout=1.5)
    assert decoded(server.inferences[-1])[0]["parameters"]["timeout"] == 1_500_000
    ps.predict("double", [[1, 2]], timeout=1.5, parameters={"timeout": 7})
    assert decoded(server.inferences[-1])[0]["parameters"]["timeout"] == 7


def test_nobody_waits_longer_than_the_timeout(ps: Any, server: FakeServer) -> None:
    """A server that accepts and stays silent: NoAnswer when the time is up."""
    release = threading.Event()

    def hold(request: Request) -> None:
        release.wait(20)

    server.after = hold
    with pytest.raises(errors.NoAnswer, match="did not answer in time"):
        ps.predict("double", [[1, 2]], timeout=0.2)
    release.set()


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_more_than_nothing(ps: Any, timeout: float) -> None:
    """Refused before anything is sent."""
    with pytest.raises(errors.InvalidInput, match="timeout"):
        ps.predict("double", [[1, 2]], timeout=timeout)


def test_unknown_models_are_not_found(ps: Any) -> None:
    """The server's sentence is the error's."""
    with pytest.raises(errors.NotFound, match="unknown model 'nope'") as caught:
        ps.predict("nope", [[1]])
    assert caught.value.status == 404


def test_names_stay_in_their_place(ps: Any, server: FakeServer, tmp_path: Path) -> None:
    """What no model, version or alias can be called is refused before anything is sent."""
    attempts: tuple[Callable[[], Any], ...] = (
        lambda: ps.predict("../keys", [[1]]),
        lambda: ps.predict("double", [[1]], version=".."),
        lambda: ps.push(tmp_path / "not-even-looked-for.onnx", "../keys"),
        lambda: ps.delete("double", ".."),
        lambda: ps.unalias("double", ".."),
    )
    for attempt in attempts:
        with pytest.raises(errors.InvalidInput, match=r"is no (model name|version|alias)"):
            attempt()
    assert server.requests == []
