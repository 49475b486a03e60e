"""From artifact to a warm model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from structlog.testing import capture_logs

from core.errors import InvalidRequest
from repository.records import Version
from tests.graphs import graph, tensor
from tests.workers.samples import doubler, python_file, saved, version
from workers.prepare import Prepared, prepare


def prepared(made: Version, path: Path, example: object = None) -> Prepared:
    text = None if example is None else json.dumps(example).encode()
    return prepare(made, path, text, 1, 32, isolated=True)


def python(folder: Path, body: str) -> Path:
    return python_file(folder, f"class Model:\n    def predict(self, inputs):\n        {body}\n")


ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def test_an_onnx_graph_needs_nothing_else(tmp_path: Path) -> None:
    """Signature and max batch are read off the graph; each size has a sample."""
    ready = prepared(version(inputs=(), outputs=(), max_batch=-1), doubler(tmp_path))
    assert ready.runner.version.max_batch == 32
    assert ready.runner.version.signature.inputs[0].shape == (-1, 4)
    assert [sample.rows for sample in ready.samples] == [1, 2, 4, 8, 16, 32]
    assert all(sample.seconds > 0 for sample in ready.samples)
    assert ready.note == ""


def test_asked_sizes_are_what_is_warmed(tmp_path: Path) -> None:
    ready = prepared(version(warmup=(3, 7)), doubler(tmp_path))
    assert [sample.rows for sample in ready.samples] == [3, 7]


def test_a_failure_on_its_own_example_refuses_the_model(tmp_path: Path) -> None:
    path = python(tmp_path, "raise ValueError('no such column')")
    with pytest.raises(InvalidRequest, match="ValueError: no such column"):
        prepared(version(kind="python", entry="Model"), path, ROW)


def test_a_failure_on_made_up_inputs_is_only_noted(tmp_path: Path) -> None:
    """A model may rightly refuse zeros; whoever pushed it is told."""
    path = python(tmp_path, "raise ValueError('zeros')")
    ready = prepared(version(kind="python", entry="Model"), path)
    assert ready.samples == []
    assert "ValueError: zeros" in ready.note
    assert "example" in ready.note


def test_a_note_tells_what_failed_and_nothing_of_our_insides(tmp_path: Path) -> None:
    """Which node, on which shapes, and the id of the line in the log that has the whole error, paths and all."""
    threes = numpy_helper.from_array(np.array([-1, 3], np.int64), "threes")
    reshape = helper.make_node("Reshape", ["x", "threes"], ["y"], name="r")
    artifact = graph([reshape], [tensor("x", "FP32", "n", 4)], [tensor("y", "FP32", "n", 3)], [threes])
    with capture_logs() as logged:
        ready = prepared(version(inputs=(), outputs=(), max_batch=4), saved(tmp_path / "r.onnx", artifact))
    assert "x [1, 4], failed (GraphFailed: while running Reshape node" in ready.note
    assert "/" not in ready.note
    (line,) = [line for line in logged if line["event"] == "warm-up failed"]
    assert f"error id {line['error_id']})" in ready.note
    assert ".h:" in str(line["exc_info"].__cause__)


def test_outputs_that_contradict_the_signature_refuse_the_model_either_way(tmp_path: Path) -> None:
    path = python(tmp_path, "return {'y': inputs['x'].astype('f8')}")
    for example in (None, ROW):
        with pytest.raises(InvalidRequest, match="'y' is FP64"):
            prepared(version(kind="python", entry="Model"), path, example)


def test_an_example_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="example"):
        prepare(version(), doubler(tmp_path), b"junk", 1, 32, isolated=False)


def test_a_model_that_runs_out_of_memory_when_warmed_serves_what_it_can(tmp_path: Path) -> None:
    path = python(tmp_path, "assert len(inputs['x']) <= 8 or exec('raise MemoryError'); return {'y': inputs['x']}")
    ready = prepared(version(kind="python", entry="Model"), path, ROW)
    assert ready.runner.limit == 8
