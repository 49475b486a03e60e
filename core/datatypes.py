"""The V2 protocol's tensor datatypes and what numpy calls them.

Fixed-size types travel as row-major little-endian bytes. BYTES elements travel as a 4-byte unsigned
little-endian length and the bytes (T:docs/protocol/extension_binary_data.md). BF16 is the upper half of FP32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidRequest

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes of a tensor. Arrays of numpy and `array` are handed on as memoryviews."""


class DataType(NamedTuple):
    name: str
    size: int
    """Bytes an element; 0 for BYTES, whose elements carry their length."""
    numpy: np.dtype[Any]
    json: bool
    """Whether JSON can carry it (FP16 and BF16: binary and raw only)."""


def _fixed(name: str, code: str, json: bool = True) -> DataType:
    dtype = np.dtype(code)
    return DataType(name, dtype.itemsize, dtype, json)


DATATYPES: dict[str, DataType] = {
    row.name: row
    for row in (
        _fixed("BOOL", "?"),
        _fixed("INT8", "<i1"),
        _fixed("INT16", "<i2"),
        _fixed("INT32", "<i4"),
        _fixed("INT64", "<i8"),
        _fixed("UINT8", "<u1"),
        _fixed("UINT16", "<u2"),
        _fixed("UINT32", "<u4"),
        _fixed("UINT64", "<u8"),
        _fixed("FP16", "<f2", json=False),
        DataType("BF16", 2, np.dtype(ml_dtypes.bfloat16), False),
        _fixed("FP32", "<f4"),
        _fixed("FP64", "<f8"),
        DataType("BYTES", 0, np.dtype(object), True),
    )
}

_BY_NUMPY = {row.numpy: row for row in DATATYPES.values()}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: np.dtype[Any]) -> DataType:
    """The V2 datatype of a numpy dtype; strings and objects are BYTES.

    Raises InvalidRequest for dtypes that V2 has no name for (complex, datetime, …).
    """
    if dtype.kind in "OSUT":
        return DATATYPES["BYTES"]
    found = _BY_NUMPY.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if found is None:
        raise InvalidRequest(f"the V2 protocol has no datatype for {dtype}")
    return found


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements of a BYTES tensor → their wire form."""
    parts: list[bytes] = []
    for element in elements:
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def decode_bytes(data: Buffer, count: int, name: str = "tensor") -> list[bytes]:
    """The wire form of a BYTES tensor → its `count` elements.

    Raises InvalidRequest when lengths and data do not match exactly. Allocates nothing that the data does not hold.
    """
    view = memoryview(data)
    end = len(view)
    if count * 4 > end:
        raise InvalidRequest(f"tensor {name!r}: {count} BYTES elements cannot fit in {end} bytes")
    elements: list[bytes] = []
    at = 0
    for _ in range(count):
        if at + 4 > end:
            raise InvalidRequest(f"tensor {name!r}: BYTES data ends inside the length of element {len(elements)}")
        (length,) = _LENGTH.unpack_from(view, at)
        at += 4
        if at + length > end:
            raise InvalidRequest(f"tensor {name!r}: BYTES element {len(elements)} runs past the end of the data")
        elements.append(bytes(view[at : at + length]))
        at += length
    if at != end:
        raise InvalidRequest(f"tensor {name!r}: {end - at} bytes left over after {count} BYTES elements")
    return elements


def to_wire(datatype: DataType, array: NDArray[Any]) -> Buffer:
    """An array → its wire bytes: a view where the array is contiguous and of the right dtype.

    Objects and strings become BYTES elements (text as UTF-8).
    """
    if datatype.size:
        return np.ascontiguousarray(array, dtype=datatype.numpy).reshape(-1).view(np.uint8).data
    return encode_bytes(_as_bytes(element) for element in array.reshape(-1).tolist())


def _as_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    raise InvalidRequest(f"a BYTES element must be bytes or text, not {type(element).__name__}")
