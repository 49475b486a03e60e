"""Whether tensors are what a signature says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.datatypes import DATATYPES, datatype_of
from core.errors import InvalidRequest, ModelFailed
from repository.records import TensorSpec
from workers.merge import Array


class WrongOutput(ModelFailed):
    """The model answered with something else than its signature says; the message names the tensor."""


def fits(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether `shape` is one of those that `declared` allows (-1: any size there)."""
    return len(declared) == len(shape) and all(d in (-1, s) for d, s in zip(declared, shape, strict=True))


def is_of(array: Array, datatype: str) -> bool:
    """Whether an array's dtype is what a V2 datatype is called in numpy (text and objects are BYTES)."""
    row = DATATYPES[datatype]
    return array.dtype == row.numpy if row.size else array.dtype.kind in "OSUT"


def check_outputs(specs: Sequence[TensorSpec], produced: object, rows: int | None) -> list[Array]:
    """What a model returned → its arrays in the order of `specs`.

    `rows`: those of the inputs where the model batches, else None. Raises WrongOutput for a missing or extra output,
    a wrong datatype or shape, or another number of rows.
    """
    if not isinstance(produced, dict):
        raise WrongOutput(f"the model must return a dict of arrays by output name, not {type(produced).__name__}")
    arrays = [_checked(spec, produced.get(spec.name), rows) for spec in specs]
    if len(produced) != len(arrays):
        extra = sorted(str(name) for name in produced.keys() - {spec.name for spec in specs})
        raise WrongOutput(f"the model returned {', '.join(map(repr, extra))}, which its signature does not name")
    return arrays


def _checked(spec: TensorSpec, array: Any, rows: int | None) -> Array:
    if not isinstance(array, np.ndarray):
        what = "is missing" if array is None else f"is no numpy array but {type(array).__name__}"
        raise WrongOutput(f"the model's output {spec.name!r} {what}")
    if not is_of(array, spec.datatype):
        raise WrongOutput(f"the model's output {spec.name!r} is {_named(array)}, its signature says {spec.datatype}")
    if not fits(spec.shape, array.shape):
        raise WrongOutput(
            f"the model's output {spec.name!r} has the shape {list(array.shape)}, its signature says {list(spec.shape)}"
        )
    if rows is not None and array.shape[0] != rows:
        raise WrongOutput(f"the model's output {spec.name!r} has {array.shape[0]} rows for {rows} rows of input")
    return array


def _named(array: Array) -> str:
    try:
        return datatype_of(array.dtype).name
    except InvalidRequest:
        return str(array.dtype)
