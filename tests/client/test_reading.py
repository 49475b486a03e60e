"""Input files in every documented form, and drawings of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock.drawing import PLAIN_SHADES, SHADES, draw, image_of
from penstock.errors import InvalidInput
from penstock.reading import read_input

REQUEST = {
    "id": "q1",
    "parameters": {"priority": 1, "binary_data_output": True},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
    "outputs": [{"name": "y"}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "input"


def test_a_v2_request(path: Path) -> None:
    """Names, datatypes and shapes count; id, parameters and outputs come along."""
    path.write_text(json.dumps(REQUEST))
    found = read_input(str(path))
    assert isinstance(found.values, dict)
    assert found.values["x"].dtype == np.float32
    assert found.values["x"].tolist() == [[1, 2]]
    assert (found.id, found.parameters, found.outputs) == ("q1", {"priority": 1}, ["y"])


def test_lists(path: Path) -> None:
    """Bare for a model of one input, by name else (also by the name `inputs`)."""
    path.write_text("[[1, 2]]")
    assert np.asarray(read_input(str(path)).values).tolist() == [[1, 2]]
    for name in ("x", "inputs"):
        path.write_text(json.dumps({name: [[1, 2]]}))
        values = read_input(str(path)).values
        assert isinstance(values, dict)
        assert values[name].tolist() == [[1, 2]]


def test_numpy_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An .npy is an array, an .npz arrays by name; known by their first bytes, so stdin will do."""
    buffer = io.BytesIO()
    np.save(buffer, np.eye(2))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue())))
    assert np.asarray(read_input("-").values).tolist() == [[1, 0], [0, 1]]
    with path.open("wb") as file:
        np.savez(file, a=np.ones(2), b=np.array(["x"]))
    values = read_input(str(path)).values
    assert isinstance(values, dict)
    assert sorted(values) == ["a", "b"]


def test_numpy_files_with_objects_are_refused(path: Path) -> None:
    """They would have to be unpickled."""
    with path.open("wb") as file:
        np.save(file, np.array([{}], dtype=object))
    with pytest.raises(InvalidInput, match="cannot be read by numpy"):
        read_input(str(path))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}]}


BROKEN: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "is no JSON, .npy or .npz"),
    "a number": (3, "neither a V2 request"),
    "empty": ({}, "neither a V2 request"),
    "ragged": ([[1], [2, 3]], "rows of a list"),
    "wrong count": (tensor(shape=[3]), "tensor 'x': data, datatype and shape do not agree"),
    "no datatype": ({"inputs": [{"name": "x", "shape": [1], "data": [1]}]}, "tensor 'x': no known 'datatype'"),
    "unknown datatype": (tensor(datatype="FP8"), "tensor 'x'"),
    "a fraction": (tensor(datatype="INT32", data=[1.5, 2]), "tensor 'x': 1.5"),
    "text": (tensor(data=["a", "b"]), "tensor 'x': the model takes numbers"),
    "too large": (tensor(datatype="UINT8", data=[1, 300]), "tensor 'x': 300"),
    "a shape of text": (tensor(shape=["a"]), "tensor 'x'"),
}


@pytest.mark.parametrize(("document", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named(path: Path, document: Any, message: str) -> None:
    """The file, the tensor, and what is wrong with it."""
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InvalidInput, match=message) as caught:
        read_input(str(path))
    assert str(path) in caught.value.message


def test_missing_files_are_named(path: Path) -> None:
    """As is a folder."""
    with pytest.raises(InvalidInput, match="there is no file"):
        read_input(str(path))
    path.mkdir()
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        read_input(str(path))


# --- drawings ---


@pytest.mark.parametrize(
    ("shape", "asked", "drawn"),
    [
        ((1, 1, 8, 8), False, (8, 8)),
        ((1, 64), False, (8, 8)),
        ((28, 28), False, (28, 28)),
        ((1, 784), False, (28, 28)),
        ((1, 9), False, None),
        ((1, 9), True, (3, 3)),
        ((5, 7), True, (5, 7)),
        ((2, 8, 8), True, None),
        ((65, 65), True, None),
        ((1,), True, None),
        ((3,), True, None),
        ((0,), True, None),
    ],
)
def test_what_is_an_image(shape: tuple[int, ...], asked: bool, drawn: tuple[int, int] | None) -> None:
    """Digits of the known sizes by themselves; other rectangles and squares when asked."""
    found = image_of(np.zeros(shape), asked=asked)
    assert (None if found is None else found.shape) == drawn


def test_text_is_no_image() -> None:
    """Whatever its shape."""
    assert image_of(np.full((8, 8), b"x", dtype=object), asked=True) is None


def test_larger_is_darker() -> None:
    """Two characters a pixel, from the smallest value to the largest."""
    image = np.array([[0, 4, 8, 12, 16]])
    assert draw(image) == ["  ░░▒▒▓▓██"]
    assert draw(image, PLAIN_SHADES) == ["  ..++##@@"]
    assert draw(np.full((1, 2), np.nan)) == [SHADES[0] * 4]
