"""How a signature and a max batch are settled: declared, told by the artifact, shown by an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec
from repository.signature import warmup_sizes
from tests.workers.samples import rows, version
from workers.merge import Arrays
from workers.messages import Scalar
from workers.probe import FIXED, Found, hint_of, settle

NOTHING = Signature((), ())
X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 4))
ONE_X, ONE_Y = TensorSpec("x", "FP32", (1, 4)), TensorSpec("y", "FP32", (1, 4))


class Model:
    def __init__(self, compute: Callable[[Arrays], Any], told: Signature = NOTHING) -> None:
        self.signature = told
        self._compute = compute

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        return self._compute(inputs)  # type: ignore[no-any-return]

    def close(self) -> None:
        pass


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


def settled(model: Model, declared: Signature = NOTHING, example: Arrays | None = None, max_batch: int = -1) -> Found:
    asked = version(inputs=declared.inputs, outputs=declared.outputs, max_batch=max_batch)
    return settle(asked, model, example, 32)


def test_an_example_tells_the_whole_signature() -> None:
    """One row: the first dimension is the batch because twice the rows give twice the answers."""
    assert settled(Model(double), example={"x": rows(1)}) == Found(Signature((X,), (Y,)), 32)


def test_an_example_tells_the_outputs_of_declared_inputs() -> None:
    assert settled(Model(double), Signature((X,), ()), {"x": rows(1, 2)}) == Found(Signature((X,), (Y,)), 32)


def test_made_up_inputs_tell_the_outputs_where_there_is_no_example() -> None:
    assert settled(Model(double), Signature((X,), ())) == Found(Signature((X,), (Y,)), 32)


def test_a_model_that_takes_one_row_only_does_not_batch() -> None:
    def only_one(inputs: Arrays) -> Arrays:
        assert inputs["x"].shape[0] == 1
        return double(inputs)

    assert settled(Model(only_one), example={"x": rows(1)}) == Found(Signature((ONE_X,), (ONE_Y,)), 0)


def test_an_output_that_does_not_follow_the_rows_does_not_batch() -> None:
    total = Model(lambda inputs: {"y": inputs["x"].sum(axis=0, keepdims=True)})
    assert settled(total, example={"x": rows(1)}).max_batch == 0


def test_inputs_of_different_rows_do_not_batch() -> None:
    found = settled(Model(lambda i: {"y": i["a"]}), example={"a": rows(1, 2), "b": rows(3)})
    assert found.max_batch == 0
    assert [spec.shape for spec in found.signature.inputs] == [(2, 4), (1, 4)]


def test_max_batch_0_keeps_the_shapes_of_the_example() -> None:
    found = settled(Model(double), example={"x": rows(1)}, max_batch=0)
    assert found == Found(Signature((ONE_X,), (ONE_Y,)), 0)


def test_a_declared_signature_stands() -> None:
    assert settled(Model(double), Signature((X,), (Y,)), max_batch=8) == Found(Signature((X,), (Y,)), 8)


def test_without_a_max_batch_variable_first_dimensions_give_the_default() -> None:
    fixed = TensorSpec("y", "FP32", (4,))
    assert settled(Model(double), Signature((X,), (Y,))).max_batch == 32
    assert settled(Model(double), Signature((X,), (fixed,))).max_batch == 0


def test_an_artifact_with_fixed_shapes_cannot_batch_and_says_so() -> None:
    model = Model(double, Signature((ONE_X,), (ONE_Y,)))
    assert settled(model) == Found(Signature((ONE_X,), (ONE_Y,)), 0, FIXED)
    with pytest.raises(InvalidRequest, match=r"'x'.*cannot batch"):
        settled(model, max_batch=8)


def test_one_row_at_a_time_suits_an_artifact_of_one_row() -> None:
    model = Model(double, Signature((ONE_X,), (ONE_Y,)))
    assert settled(model, max_batch=1) == Found(Signature((X,), (Y,)), 1)
    assert settled(model, Signature((X,), (Y,)), max_batch=1) == Found(Signature((X,), (Y,)), 1)


TOLD = Signature((X,), (Y,))


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (Signature((TensorSpec("z", "FP32", (-1, 4)),), ()), "input 'z' is not in the artifact: it has 'x'"),
        (Signature((TensorSpec("x", "INT64", (-1, 4)),), ()), r"input 'x' is INT64 \[-1, 4\].*FP32 \[-1, 4\]"),
        (Signature((TensorSpec("x", "FP32", (-1, 5)),), ()), r"input 'x' is FP32 \[-1, 5\]"),
        (Signature((TensorSpec("x", "FP32", (-1, -1)),), ()), r"input 'x' is FP32 \[-1, -1\]"),
        (Signature((TensorSpec("x", "FP32", (4,)),), ()), r"input 'x' is FP32 \[4\]"),
        (Signature((X,), (TensorSpec("q", "FP32", (-1,)),)), "output 'q' is not in the artifact"),
    ],
)
def test_a_signature_that_the_artifact_contradicts_is_refused(declared: Signature, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        settled(Model(double, TOLD), declared)


def test_a_signature_that_leaves_out_an_input_is_refused() -> None:
    told = Signature((X, TensorSpec("b", "FP32", (-1,))), (Y,))
    with pytest.raises(InvalidRequest, match="lacks the artifact's input 'b'"):
        settled(Model(double, told), Signature((X,), ()))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"z": rows(1)}, "'z' is no input"),
        ({"x": rows(1), "z": rows(1)}, "'z' is no input"),
        ({"x": rows(1)[:, :3]}, r"'x' is FP32 \[1, 3\]"),
        ({"x": rows(1).astype(np.float64)}, "'x' is FP64"),
    ],
)
def test_an_example_that_contradicts_the_model_is_refused(example: Arrays, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        settled(Model(double, TOLD), example=example)


def test_with_no_source_at_all_the_push_is_told_what_to_bring() -> None:
    with pytest.raises(InvalidRequest, match="signature or an example"):
        settled(Model(double))


@pytest.mark.parametrize("outputs", [None, {}, [1], {"y": [1.0]}])
def test_a_model_that_answers_no_arrays_is_refused(outputs: object) -> None:
    with pytest.raises(InvalidRequest, match="dict of numpy arrays"):
        settled(Model(lambda _: outputs), example={"x": rows(1)})


def test_what_the_model_raises_on_its_example_is_told() -> None:
    def broken(inputs: Arrays) -> Arrays:
        raise KeyError("age")

    with pytest.raises(InvalidRequest, match="KeyError: 'age'"):
        settled(Model(broken), example={"x": rows(1)})


def test_the_hint_is_the_declared_signature_or_the_example() -> None:
    assert hint_of(Signature((X,), ()), {"x": rows(1)}) == Signature((X,), ())
    assert hint_of(Signature((), (Y,)), {"x": rows(1)}) == Signature((ONE_X,), (Y,))
    assert hint_of(NOTHING, None) == NOTHING


@pytest.mark.parametrize(
    ("max_batch", "asked", "expected"),
    [
        (0, (), [1]),
        (1, (), [1]),
        (32, (), [1, 2, 4, 8, 16, 32]),
        (20, (), [1, 2, 4, 8, 16, 20]),
        (32, (8, 4), [4, 8]),
        (32, (64, 0), [32]),
    ],
)
def test_warm_up_sizes(max_batch: int, asked: tuple[int, ...], expected: list[int]) -> None:
    """Powers of two up to the maximum, and that; or those asked for, within it."""
    assert list(warmup_sizes(max_batch, asked)) == expected
