"""Values a person has at hand → arrays of the datatype that the model declares, refusing what would be lost.

Rounding within floating point is what everybody expects of FP32 and below; a fraction cut off, a number out of range,
or an integer that a float cannot hold is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import InvalidInput
from penstock.wire import FIXED, Array, Tensor, datatype_of


def inputs_for(declared: Sequence[Tensor], values: Any) -> dict[str, Array]:
    """`values` (an array, list or frame for a model of one input, else a dict by name) → one array for each input.

    `declared`: the inputs of the model's V2 metadata. Raises InvalidInput that names the tensor and what is wrong.
    """
    datatypes = {tensor["name"]: tensor["datatype"] for tensor in declared}
    if not isinstance(values, Mapping):
        if len(datatypes) != 1:
            raise InvalidInput(f"the model takes {len(datatypes)} inputs: give a dict with {', '.join(datatypes)}")
        values = {next(iter(datatypes)): values}
    unknown = [name for name in values if name not in datatypes]
    if unknown:
        raise InvalidInput(f"the model has no input {unknown[0]!r}: it takes {', '.join(datatypes)}")
    return {name: fit(as_array(value, name), datatypes[name], name) for name, value in values.items()}


def as_array(value: Any, name: str = "input") -> Array:
    """Anything numpy understands → an array; lists of text or bytes as objects, since numpy's own strings lose NULs.

    Raises InvalidInput for ragged lists.
    """
    try:
        array = np.asarray(value)
    except UnicodeDecodeError:  # text beside bytes
        return np.asarray(value, dtype=object)
    except ValueError:
        raise InvalidInput(f"tensor {name!r}: the rows of a list must all have the same length") from None
    return np.asarray(value, dtype=object) if array.dtype.kind in "SU" and array is not value else array


def fit(array: Array, datatype: str, name: str = "input") -> Array:
    """The array as `datatype`. Raises InvalidInput where a value would not survive."""
    if datatype not in FIXED:
        return _text(array, name)
    target = FIXED[datatype]
    if array.dtype == target or array.size == 0:
        return array.astype(target, copy=False)
    array = _numbers(array, name)
    with np.errstate(all="ignore"):
        cast = array.astype(target)
        lost = _lost(array, cast)
    if lost.any():
        value = array.reshape(-1)[int(np.argmax(lost.reshape(-1)))]
        raise InvalidInput(f"tensor {name!r}: {value!s} ({array.dtype}) cannot be sent as {datatype} without loss")
    return cast


def _text(array: Array, name: str) -> Array:
    if datatype_of(array) != "BYTES":
        raise InvalidInput(f"tensor {name!r}: the model takes text or bytes, not {array.dtype}")
    return array


def _numbers(array: Array, name: str) -> Array:
    """Objects that are all numbers become numbers: what a frame with columns of several dtypes turns into."""
    if array.dtype.kind == "O" and all(isinstance(item, int | float | np.number) for item in array.reshape(-1)):
        array = np.array(array.tolist())
    if datatype_of(array) == "BYTES":
        raise InvalidInput(f"tensor {name!r}: the model takes numbers, not {array.dtype}")
    return array


def _lost(array: Array, cast: Array) -> Any:
    """Where a value did not survive: for float to float only what became infinite, else whatever differs."""
    if is_float(array) and is_float(cast):
        return np.isfinite(array) & ~np.isfinite(cast)
    changed = cast.astype(array.dtype) != array
    if is_float(array):
        return changed | out_of(cast.dtype, array)
    if is_float(cast):
        return changed | out_of(array.dtype, cast)
    return changed | ((array < 0) != (cast < 0))


def out_of(integers: np.dtype[Any], floats: Array) -> Any:
    """Where a float is none of these integers: some machines make the nearest one of it, others the smallest."""
    values = floats.astype(np.float64)
    info = np.iinfo(np.int8 if integers.kind == "b" else integers)
    # The largest integer of 64 bits is no float; the first float that is too large is one more.
    return ~np.isfinite(values) | (values < float(info.min)) | (values >= float(int(info.max) + 1))


def is_float(array: Array) -> bool:
    return datatype_of(array) in {"FP16", "BF16", "FP32", "FP64"}
