"""What every protocol's codec checks of a tensor before it believes it: datatype, shape, size. Pure."""

from __future__ import annotations

import struct
from functools import lru_cache
from math import prod

from core.datatypes import DATATYPES, Buffer, DataType
from core.errors import InvalidRequest, TooLarge

MAX_RANK = 32
MAX_ELEMENTS = 1 << 31
"""Of one tensor; the body's size bounds it further. Python integers do not overflow, so a lying product is seen."""


def bound(rank: int, elements: int) -> None:
    """What a process holds every tensor to: dimensions, and elements by its shape. To be called before it serves."""
    global MAX_RANK, MAX_ELEMENTS
    MAX_RANK, MAX_ELEMENTS = rank, elements


_LENGTH = struct.Struct("<I")


def datatype(name: str, tensor: str) -> DataType:
    found = DATATYPES.get(name)
    if found is None:
        raise InvalidRequest(f"tensor {tensor!r}: unknown datatype {name[:32]!r}; known are {', '.join(DATATYPES)}")
    return found


def elements(shape: tuple[int, ...], tensor: str) -> int:
    """The product of `shape`. Raises InvalidRequest for a dimension below 0 or a product that no body can hold."""
    if len(shape) > MAX_RANK:
        raise InvalidRequest(f"tensor {tensor!r}: a shape of {len(shape)} dimensions; at most {MAX_RANK}")
    if shape and min(shape) < 0:
        raise InvalidRequest(f"tensor {tensor!r}: the shape {list(shape)} has a negative dimension")
    count = prod(shape)
    if count > MAX_ELEMENTS:
        raise InvalidRequest(f"tensor {tensor!r}: a shape of {count} elements; at most {MAX_ELEMENTS}")
    if not count and shape and max(shape) > MAX_ELEMENTS:
        raise InvalidRequest(f"tensor {tensor!r}: a dimension of {max(shape)} in its shape is too large")
    return count


def check_raw(kind: DataType, count: int, data: Buffer, tensor: str) -> Buffer:
    """Return `data` if it is exactly `count` elements of raw bytes; raise InvalidRequest that says what is off."""
    size = len(data)
    if kind.size:
        if size != count * kind.size:
            raise InvalidRequest(
                f"tensor {tensor!r}: {size} bytes of data where its shape and {kind.name} need {count * kind.size}"
            )
        return data
    if count * 4 > size:
        raise InvalidRequest(f"tensor {tensor!r}: {count} BYTES elements cannot fit in {size} bytes")
    at = 0
    for index in range(count):
        if at + 4 > size:
            raise InvalidRequest(f"tensor {tensor!r}: its data ends inside the length of element {index}")
        at += 4 + _LENGTH.unpack_from(data, at)[0]
    if at != size:
        raise InvalidRequest(f"tensor {tensor!r}: its {count} BYTES elements take {at} bytes, its data has {size}")
    return data


_CODES = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}


@lru_cache(maxsize=512)
def _packer(datatype: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{_CODES[datatype]}")


def pack(datatype: str, values: list[float] | list[int] | list[bool], tensor: str) -> bytes:
    """Python numbers → raw bytes. Raises InvalidRequest for a number outside the datatype's range."""
    try:
        return _packer(datatype, len(values)).pack(*values)
    except (struct.error, OverflowError):
        raise InvalidRequest(f"tensor {tensor!r}: its data has a number outside the range of {datatype}") from None


def limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise TooLarge(f"{count} {what} in one request; at most {most}")
