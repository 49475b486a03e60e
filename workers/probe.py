"""What a loaded model's signature is, and whether it can batch.

Three sources, in this order: what was declared at the push, what the artifact tells, what an example shows. They
must agree. Outputs that nobody tells are read off a run of the example (or of made-up inputs), and so is whether
the first dimension is the batch: a second run, on twice the rows, must answer twice the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import structlog

from core.datatypes import datatype_of
from core.errors import InvalidRequest, PenstockError, new_error_id
from repository.records import Signature, TensorSpec, Version
from workers.described import described
from workers.example import made_up, repeated
from workers.merge import Array, Arrays
from workers.runtimes.base import Model
from workers.signatures import fits, is_of

FIXED = "its first dimension is fixed, so it cannot batch: requests run one by one"
log = structlog.get_logger(__name__)


class Found(NamedTuple):
    """`note`: what the pusher should know of it, '' if nothing."""

    signature: Signature
    max_batch: int
    note: str = ""


def hint_of(declared: Signature, example: Arrays | None) -> Signature:
    """What is known before loading: inputs that nobody declared are those of the example."""
    if declared.inputs or example is None:
        return declared
    return Signature(specs_of(example), declared.outputs)


def settle(version: Version, model: Model, example: Arrays | None, default_max_batch: int) -> Found:
    """The whole signature and max batch of a version. Raises InvalidRequest where the sources contradict each other,
    or where there are none."""
    declared, told = version.signature, model.signature
    if declared.inputs:
        _agree("input", declared.inputs, told.inputs, version.max_batch == 1)
    inputs = declared.inputs or told.inputs or (specs_of(example) if example is not None else ())
    if not inputs:
        raise InvalidRequest("nothing tells the model's inputs: push it with a signature or an example")
    if example is not None:
        _check_example(inputs, example)
    if declared.outputs:
        _agree("output", declared.outputs, told.outputs, version.max_batch == 1)
    outputs = declared.outputs or told.outputs
    signature = Signature(inputs, outputs)
    if not outputs or not (declared.inputs or told.inputs):
        signature = _discover(model, signature, example, version.max_batch != 0)
    return _batching(signature, told, version.max_batch, default_max_batch)


def specs_of(arrays: Arrays) -> tuple[TensorSpec, ...]:
    """Arrays → specs of exactly their shapes."""
    return tuple(TensorSpec(name, datatype_of(array.dtype).name, array.shape) for name, array in arrays.items())


def _agree(side: str, declared: tuple[TensorSpec, ...], told: tuple[TensorSpec, ...], one_row: bool) -> None:
    if not told:
        return
    by_name = {spec.name: spec for spec in told}
    for spec in declared:
        artifact = by_name.pop(spec.name, None)
        if artifact is None:
            known = ", ".join(repr(s.name) for s in told)
            raise InvalidRequest(f"the signature's {side} {spec.name!r} is not in the artifact: it has {known}")
        if spec.datatype != artifact.datatype or not _compatible(spec.shape, artifact.shape, one_row):
            raise InvalidRequest(
                f"the signature's {side} {spec.name!r} is {spec.datatype} {list(spec.shape)}, "
                f"the artifact's {artifact.datatype} {list(artifact.shape)}"
            )
    if by_name and side == "input":
        raise InvalidRequest(f"the signature lacks the artifact's input {next(iter(by_name))!r}")


def _compatible(declared: tuple[int, ...], told: tuple[int, ...], one_row: bool) -> bool:
    """`one_row`: a first dimension of 1 may be the batch of a model that takes rows one by one."""
    if one_row and told[:1] == (1,) and declared[:1] == (-1,):
        declared = (1, *declared[1:])
    return len(declared) == len(told) and all(t in (-1, d) for d, t in zip(declared, told, strict=True))


def _check_example(inputs: tuple[TensorSpec, ...], example: Arrays) -> None:
    names = {spec.name for spec in inputs}
    for name in example:
        if name not in names:
            raise InvalidRequest(f"the example's tensor {name!r} is no input of the model")
    for spec in inputs:
        array = example.get(spec.name)
        if array is None:
            raise InvalidRequest(f"the example lacks the input {spec.name!r}")
        if not is_of(array, spec.datatype) or not fits(spec.shape, array.shape):
            raise InvalidRequest(
                f"the example's tensor {spec.name!r} is {datatype_of(array.dtype).name} {list(array.shape)}, "
                f"the model's input {spec.datatype} {list(spec.shape)}"
            )


def _discover(model: Model, known: Signature, example: Arrays | None, may_batch: bool) -> Signature:
    data = example if example is not None else made_up(known.inputs)
    once = _probe(model, data)
    outputs = known.outputs or specs_of(once)
    rows = _common_rows([*data.values(), *once.values()])
    if not may_batch or not rows or not _scales(model, data, once, rows):
        return Signature(known.inputs, outputs)
    return Signature(_by_rows(known.inputs), _by_rows(outputs))


def _probe(model: Model, data: Arrays) -> Arrays:
    """One run on copies of the data. Raises InvalidRequest when the model fails or returns no arrays."""
    try:
        outputs = model.run({name: array.copy() for name, array in data.items()}, {})
    except PenstockError:
        raise
    except BaseException as error:
        error_id = new_error_id()
        log.warning("probe failed", error_id=error_id, exc_info=error)
        why = f"{described(error)}; error id {error_id}"
        raise InvalidRequest(f"the model failed on its example: {why}") from error
    if not isinstance(outputs, dict) or not outputs or not all(isinstance(a, np.ndarray) for a in outputs.values()):
        raise InvalidRequest("the model must return a dict of numpy arrays by output name")
    return outputs


def _common_rows(arrays: Iterable[Array]) -> int:
    """The first dimension that all share; 0 if there is none."""
    firsts = {array.shape[0] if array.ndim else 0 for array in arrays}
    return firsts.pop() if len(firsts) == 1 else 0


def _scales(model: Model, data: Arrays, once: Arrays, rows: int) -> bool:
    try:
        twice = _probe(model, repeated(data, 2 * rows))
    except InvalidRequest:
        return False
    return twice.keys() == once.keys() and all(
        twice[name].shape == (2 * rows, *array.shape[1:]) for name, array in once.items()
    )


def _by_rows(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(s.name, s.datatype, (-1, *s.shape[1:]), s.labels) for s in specs)


def _batching(signature: Signature, told: Signature, max_batch: int, default: int) -> Found:
    specs = [*signature.inputs, *signature.outputs]
    if max_batch == -1:
        if all(spec.shape[:1] == (-1,) for spec in specs):
            return Found(signature, default)
        return Found(signature, 0, FIXED if told.inputs else "")
    for spec in specs if max_batch else ():
        if spec.shape[:1] != (-1,) and not (max_batch == 1 and spec.shape[:1] == (1,)):
            raise InvalidRequest(
                f"{spec.name!r} has the shape {list(spec.shape)}: {FIXED}; push it without a max batch, or with 0"
            )
    return Found(
        Signature(_by_rows(signature.inputs), _by_rows(signature.outputs)) if max_batch else signature, max_batch
    )
