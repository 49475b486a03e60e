"""Pieces of several callers → one array an input; the model's arrays → each caller's own outputs. Pure.

The hot path of a worker: a batch of small rows must cost few tens of microseconds outside its model, so pieces are
joined once by C code, a lone piece is viewed and never copied, and outputs are handed out as slices of one buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.datatypes import DATATYPES, Buffer, decode_bytes, to_wire
from core.errors import InvalidRequest
from repository.records import TensorSpec
from workers.messages import Batch, Column, Member, Output

Array = NDArray[Any]
Arrays = dict[str, Array]
_BOOL = DATATYPES["BOOL"]


def merge(batch: Batch) -> Arrays:
    """The inputs of one execution: for each column an array of shape `(rows, *shape)`, or `shape` unbatched.

    An array over a lone read-only piece is read-only; joined ones are writable. Raises InvalidRequest where pieces
    do not hold exactly what the shapes say.
    """
    if not batch.batched:
        return {column.name: _array(column, column.shape, [math.prod(column.shape)]) for column in batch.inputs}
    rows = [member.rows for member in batch.members]
    total = sum(rows)
    return {column.name: _array(column, (total, *column.shape), rows) for column in batch.inputs}


def _array(column: Column, shape: tuple[int, ...], rows: list[int]) -> Array:
    datatype = DATATYPES[column.datatype]
    if not datatype.size:
        return _elements(column, shape, rows)
    pieces = column.pieces
    data: Buffer = pieces[0] if len(pieces) == 1 else bytearray().join(pieces)
    length = memoryview(data).nbytes
    if length != math.prod(shape) * datatype.size:
        raise InvalidRequest(f"tensor {column.name!r}: {length} bytes of data do not fill the shape {list(shape)}")
    if datatype is _BOOL:
        return np.asarray(np.frombuffer(data, np.uint8) != 0).reshape(shape)
    array: Array = np.frombuffer(data, datatype.numpy).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _elements(column: Column, shape: tuple[int, ...], rows: list[int]) -> Array:
    """BYTES are decoded piece by piece, so that a piece that lies cannot shift its neighbours' elements."""
    each = math.prod(shape) // (shape[0] or 1) if len(column.shape) < len(shape) else 1
    elements: list[bytes] = []
    for piece, count in zip(column.pieces, rows, strict=True):
        elements += decode_bytes(piece, count * each, column.name)
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def split(
    specs: Sequence[TensorSpec], arrays: Sequence[Array], members: list[Member], batched: bool
) -> list[list[Output]]:
    """The outputs of one execution (in the order of `specs`) → those of each member, data as views where possible.

    `arrays` must have passed `check_outputs`: where the model batches, their first dimension counts the members' rows.
    """
    if not batched:
        return [[_whole(spec, array) for spec, array in zip(specs, arrays, strict=True)]]
    columns = [_shares(spec, array, members) for spec, array in zip(specs, arrays, strict=True)]
    return [list(outputs) for outputs in zip(*columns, strict=True)]


def _whole(spec: TensorSpec, array: Array) -> Output:
    return Output(spec.name, spec.datatype, array.shape, to_wire(DATATYPES[spec.datatype], array))


def _shares(spec: TensorSpec, array: Array, members: list[Member]) -> list[Output]:
    datatype = DATATYPES[spec.datatype]
    if not datatype.size:
        return _element_shares(spec, array, members)
    name, code, row = spec.name, spec.datatype, array.shape[1:]
    data = to_wire(datatype, array)
    step = datatype.size * math.prod(row)
    outputs, at = [], 0
    for member in members:
        end = at + member.rows * step
        outputs.append(Output(name, code, (member.rows, *row), data[at:end]))
        at = end
    return outputs


def _element_shares(spec: TensorSpec, array: Array, members: list[Member]) -> list[Output]:
    outputs, at = [], 0
    for member in members:
        outputs.append(_whole(spec, array[at : at + member.rows]))
        at += member.rows
    return outputs
