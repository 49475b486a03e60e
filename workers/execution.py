"""Runs batches through one model and answers every member, whatever the model does.

    merge → model → check → split
      └── raised, or wrong outputs: the batch is halved until only the culprit fails
            └── out of memory: the rows are halved, and the size is remembered

All of it synchronous, on the compute thread; `worker.py` is the shell that feeds it.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import structlog

from core.errors import ModelFailed, PenstockError, new_error_id
from repository.records import Version
from workers.coalesce import halves
from workers.merge import Array, Arrays, merge, split
from workers.messages import Batch, Failure, Output, Scalar, failure_of
from workers.runtimes.base import Model
from workers.signatures import WrongOutput, check_outputs

log = structlog.get_logger(__name__)
Result = list[Output] | Failure


class Stages:
    """Nanoseconds spent in each stage of an execution, its repetitions included."""

    __slots__ = ("infer", "input", "output")

    def __init__(self) -> None:
        self.input = 0
        self.infer = 0
        self.output = 0


class Runner:
    """One model with its signature. `limit` is the largest execution in rows; running out of memory lowers it."""

    def __init__(self, version: Version, model: Model) -> None:
        self.version = version
        self.limit = version.max_batch or 1
        self._affordable = sys.maxsize
        self._model = model
        self._outputs = version.signature.outputs

    def answer(self, batch: Batch, stages: Stages) -> list[Result]:
        """One result a member; never raises."""
        try:
            return list(self.execute(batch, stages))
        except BaseException as error:  # a model may raise anything, SystemExit included
            if len(batch.members) == 1:
                return [self._failure(error)]
        first, second = halves(batch)
        return self.answer(first, stages) + self.answer(second, stages)

    def execute(self, batch: Batch, stages: Stages) -> list[list[Output]]:
        """The outputs of each member. Raises what the model raises, WrongOutput and InvalidRequest."""
        begun = time.perf_counter_ns()
        inputs = merge(batch)
        merged = time.perf_counter_ns()
        stages.input += merged - begun
        try:
            outputs = self._infer(inputs, batch.parameters, batch.rows if batch.batched else None)
        finally:
            inferred = time.perf_counter_ns()
            stages.infer += inferred - merged
        results = split(self._outputs, outputs, batch.members, batch.batched)
        stages.output += time.perf_counter_ns() - inferred
        return results

    def close(self) -> None:
        self._model.close()

    def _infer(self, inputs: Arrays, parameters: dict[str, Scalar], rows: int | None) -> list[Array]:
        if rows is None or rows <= self._affordable:
            try:
                return check_outputs(self._outputs, self._model.run(inputs, parameters), rows)
            except MemoryError:
                if rows is None or rows < 2:
                    raise
                self._affordable = rows // 2
                self.limit = min(self.limit, self._affordable)
                log.warning("out of memory: batch halved", model=self.version.key, rows=rows, now=self._affordable)
        return self._in_parts(inputs, parameters, rows)

    def _in_parts(self, inputs: Arrays, parameters: dict[str, Scalar], rows: int) -> list[Array]:
        step = self._affordable
        parts = [
            self._infer({n: a[at : at + step] for n, a in inputs.items()}, parameters, min(step, rows - at))
            for at in range(0, rows, step)
        ]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, PenstockError) and not isinstance(error, WrongOutput):
            return failure_of(error)
        error_id = new_error_id()
        log.error("model failed", model=self.version.key, error_id=error_id, exc_info=error)
        return failure_of(ModelFailed(_message(error), error_id=error_id))


def _message(error: BaseException) -> str:
    if isinstance(error, WrongOutput):
        return error.message
    if isinstance(error, MemoryError):
        return "the model ran out of memory on this request"
    return "the model failed on this request"
