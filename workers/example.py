"""An example: the inputs of a V2 inference request in JSON, stored with a version to probe and to warm it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from core.datatypes import DATATYPES, DataType, to_wire
from core.errors import InvalidRequest
from repository.records import TensorSpec
from workers.merge import Array, Arrays
from workers.messages import Batch, Column, Member


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]


class _Request(msgspec.Struct):
    inputs: list[_Tensor]


_decoder = msgspec.json.Decoder(_Request)


def read_example(body: bytes) -> Arrays:
    """`{"inputs": [{"name", "datatype", "shape", "data"}, …]}` → arrays by name. Raises InvalidRequest."""
    try:
        request = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the example is no V2 inference request: {error}") from error
    arrays: Arrays = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise InvalidRequest(f"the example has two tensors {tensor.name!r}")
        arrays[tensor.name] = _array(tensor)
    if not arrays:
        raise InvalidRequest("the example has no inputs")
    return arrays


def _array(tensor: _Tensor) -> Array:
    datatype = DATATYPES.get(tensor.datatype)
    if datatype is None:
        raise InvalidRequest(f"the example's tensor {tensor.name!r} has an unknown datatype {tensor.datatype[:32]!r}")
    flat = _flatten(tensor.data)
    if any(d < 0 for d in tensor.shape) or len(flat) != math.prod(tensor.shape):
        raise InvalidRequest(
            f"the example's tensor {tensor.name!r}: {len(flat)} elements do not fill the shape {list(tensor.shape)}"
        )
    try:
        return _typed(datatype, flat).reshape(tensor.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"the example's tensor {tensor.name!r} holds what is no {datatype.name}") from error


def _typed(datatype: DataType, flat: list[Any]) -> Array:
    if not datatype.size:
        array = np.empty(len(flat), dtype=object)
        array[:] = [element.encode() for element in _all(str, flat)]
        return array
    kind = datatype.numpy.kind
    accepted = {"b": (bool,), "i": (int,), "u": (int,)}.get(kind, (int, float))
    return np.array(_all(accepted, flat), dtype=datatype.numpy)


def _all(accepted: type | tuple[type, ...], flat: list[Any]) -> list[Any]:
    for element in flat:
        if not isinstance(element, accepted) or (isinstance(element, bool) and accepted != (bool,)):
            raise TypeError
    return flat


def _flatten(data: list[Any]) -> list[Any]:
    while any(isinstance(element, list) for element in data):
        data = [inner for element in data for inner in (element if isinstance(element, list) else [element])]
    return data


def made_up(specs: tuple[TensorSpec, ...]) -> Arrays:
    """Inputs for a version without an example: zeros (b"" for BYTES), variable dimensions 1."""
    return {spec.name: _zeros(spec) for spec in specs}


def _zeros(spec: TensorSpec) -> Array:
    datatype = DATATYPES[spec.datatype]
    shape = tuple(1 if d == -1 else d for d in spec.shape)
    return np.zeros(shape, datatype.numpy) if datatype.size else np.full(shape, b"", dtype=object)


def repeated(arrays: Arrays, rows: int) -> Arrays:
    """The same inputs with their rows repeated in turn until there are `rows`."""
    return {name: array[np.arange(rows) % array.shape[0]] for name, array in arrays.items()}


def as_batch(specs: tuple[TensorSpec, ...], arrays: Arrays, batched: bool) -> Batch:
    """Arrays → a batch with one member, as a gateway would send it."""
    columns = [_column(spec, arrays[spec.name], batched) for spec in specs]
    rows = arrays[specs[0].name].shape[0] if batched else 1
    return Batch(0, batched, [Member(rows)], columns)


def _column(spec: TensorSpec, array: Array, batched: bool) -> Column:
    data = to_wire(DATATYPES[spec.datatype], array)
    return Column(spec.name, spec.datatype, array.shape[1:] if batched else array.shape, [bytes(data)])
