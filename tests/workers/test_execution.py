"""Whatever a model does, every member gets an answer of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from core.datatypes import encode_bytes
from repository.records import Signature, TensorSpec
from tests.workers.samples import array_of, batch_of, failure_in, rows, version
from workers.execution import Runner, Stages
from workers.merge import Arrays
from workers.messages import Batch, Column, Member, Output, Scalar


class Model:
    """A scripted model that remembers the sizes it was run at."""

    def __init__(self, compute: Callable[[Arrays], object]) -> None:
        self.signature = Signature((), ())
        self.sizes: list[int] = []
        self.parameters: list[dict[str, Scalar]] = []
        self._compute = compute

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        self.sizes.append(next(iter(inputs.values())).shape[0])
        self.parameters.append(parameters)
        return self._compute(inputs)  # type: ignore[return-value]

    def close(self) -> None:
        pass


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


def poisoned(error: BaseException) -> Model:
    """Doubles, unless a row holds 13."""

    def compute(inputs: Arrays) -> Arrays:
        if (inputs["x"] == 13).any():
            raise error
        return double(inputs)

    return Model(compute)


def answer(model: Model, batch: Batch, max_batch: int = 32) -> list[object]:
    return list(Runner(version(max_batch=max_batch), model).answer(batch, Stages()))


def first_values(results: list[object]) -> list[float | str]:
    """The first element of each member's output, or the reason of its failure."""
    return [float(array_of(r)[0, 0]) if isinstance(r, list) else failure_in(r).reason for r in results]  # type: ignore[arg-type]


def test_a_batch_runs_once_and_is_split() -> None:
    model = Model(double)
    assert first_values(answer(model, batch_of(rows(1), rows(2, 2), rows(3)))) == [2, 4, 6]
    assert model.sizes == [4]


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(3), RecursionError(), AssertionError()])
def test_only_the_culprit_of_an_exception_fails(error: BaseException) -> None:
    """Whatever it raises, neighbours are answered, and the message tells nothing of the inside."""
    results = answer(poisoned(error), batch_of(rows(1), rows(2), rows(13), rows(4), rows(5)))
    assert first_values(results) == [2, 4, "model_failed", 8, 10]
    failure = failure_in(results[2])  # type: ignore[arg-type]
    assert failure.error_id
    assert "secret" not in failure.message


def test_bisection_takes_few_runs() -> None:
    """One culprit among 32 costs at most two runs a level."""
    model = poisoned(ValueError())
    answer(model, batch_of(*(rows(13 if at == 21 else 100 + at) for at in range(32))))
    assert len(model.sizes) <= 1 + 2 * 5


def test_every_member_fails_when_all_are_culprits() -> None:
    assert first_values(answer(poisoned(ValueError()), batch_of(rows(13), rows(13)))) == ["model_failed"] * 2


def one_row_too_few(inputs: Arrays) -> Arrays:
    kept = inputs["x"][inputs["x"][:, 0] != 13]
    return {"y": kept * 2}


def test_a_row_that_goes_missing_fails_its_member_only() -> None:
    """A model that drops a row must not shift its neighbours' answers."""
    assert first_values(answer(Model(one_row_too_few), batch_of(rows(1), rows(13), rows(3)))) == [2, "model_failed", 6]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({}, "'y' is missing"),
        ({"y": rows(1), "z": rows(1)}, "'z'"),
        ({"y": rows(1).astype(np.float64)}, "'y' is FP64"),
        ({"y": rows(1)[:, :3]}, r"'y' has the shape \[1, 3\]"),
        ({"y": rows(1)[0]}, r"'y' has the shape \[4\]"),
        ({"y": rows(1, 2)}, "'y' has 2 rows for 1"),
        ({"y": [1.0]}, "'y' is no numpy array"),
        ({"y": np.array([[1j] * 4])}, "'y' is complex128"),
        ([1], "must return a dict"),
        (None, "must return a dict"),
    ],
)
def test_wrong_outputs_are_named(outputs: object, said: str) -> None:
    """Missing, extra, wrong datatype, shape, rank, rows: the member gets an error that says which."""
    (result,) = answer(Model(lambda _: outputs), batch_of(rows(1)))
    failure = failure_in(result)  # type: ignore[arg-type]
    assert failure.reason == "model_failed"
    assert failure.error_id
    with pytest.raises(Exception, match=said):
        raise failure.error()


def limited(most: int) -> Model:
    def compute(inputs: Arrays) -> Arrays:
        if inputs["x"].shape[0] > most:
            raise MemoryError
        return double(inputs)

    return Model(compute)


def test_out_of_memory_halves_and_remembers() -> None:
    """All are answered, in order; the next batch does not try the size again, and coalescing goes no higher."""
    model = limited(3)
    runner = Runner(version(), model)
    batch = batch_of(*(rows(at) for at in range(10)))
    assert first_values(list(runner.answer(batch, Stages()))) == [2 * at for at in range(10)]
    assert runner.limit <= 3
    model.sizes.clear()
    runner.answer(batch, Stages())
    assert max(model.sizes) <= 3


def test_one_callers_rows_are_halved_too() -> None:
    (result,) = answer(limited(3), batch_of(rows(*range(10))))
    assert array_of(result)[:, 0].tolist() == [2 * at for at in range(10)]  # type: ignore[arg-type]


def test_a_row_that_never_fits_fails_alone() -> None:
    """Out of memory at one row is that member's failure; the next ones are answered."""
    results = answer(poisoned(MemoryError()), batch_of(rows(1), rows(13), rows(3)))
    assert first_values(results) == [2, "model_failed", 6]
    assert "memory" in failure_in(results[1]).message  # type: ignore[arg-type]


def test_a_member_whose_data_lies_fails_alone_and_as_its_own_fault() -> None:
    text = TensorSpec("t", "BYTES", (-1,))
    runner = Runner(version(inputs=[text], outputs=[text]), Model(lambda inputs: inputs))
    good, bad = encode_bytes([b"ok"]), b"\xff\xff\xff\xff"
    batch = Batch(1, True, [Member(1), Member(1)], [Column("t", "BYTES", (), [good, bad])])
    first, second = runner.answer(batch, Stages())
    assert array_of(first).tolist() == [b"ok"]
    assert failure_in(second).reason == "invalid_request"


def test_parameters_reach_the_model() -> None:
    model = Model(double)
    answer(model, batch_of(rows(1), parameters={"scale": 2}))
    assert model.parameters == [{"scale": 2}]


def test_unbatched_requests_run_whole() -> None:
    """Without batching the shape is the tensor's own, and no row count is expected of outputs."""
    specs = [TensorSpec("y", "FP32", (-1,))]
    runner = Runner(version(max_batch=0, outputs=specs), Model(lambda inputs: {"y": inputs["x"].sum(axis=0)}))
    batch = Batch(1, False, [Member(1)], [Column("x", "FP32", (2, 4), [rows(1, 2).tobytes()])])
    (result,) = runner.answer(batch, Stages())
    assert isinstance(result, list)
    assert isinstance(result[0], Output)
    assert array_of(result).tolist() == [3, 3, 3, 3]


def test_stages_are_timed() -> None:
    stages = Stages()
    Runner(version(), Model(double)).answer(batch_of(rows(1)), stages)
    assert min(stages.input, stages.infer, stages.output) > 0
