"""The header of a safetensors file, held against the file before anything is loaded from it. Pure but for the read.

Eight bytes of length, JSON (name → dtype, shape, data_offsets), then the data: every byte of it must belong to
exactly one tensor.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from core.errors import InvalidRequest

MAX_HEADER = 16 << 20
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4}
SIZES |= {"U64": 8, "I64": 8, "F64": 8}
"""Bytes an element of each dtype that we load."""


def check_header(path: Path) -> None:
    """Raise InvalidRequest for a header that lies: about its size, the data's, overlaps, holes, duplicates."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise InvalidRequest("the artifact is no safetensors file: its header is longer than the file or 16 MiB")
        header = _parsed(file.read(length))
    spans = sorted(_span(name, entry) for name, entry in header.items() if name != "__metadata__")
    at = 0
    for begin, end, name in spans:
        if begin != at:
            raise InvalidRequest(f"safetensors: the data of {name!r} {'overlaps' if begin < at else 'leaves a hole'}")
        at = end
    if at != size - 8 - length:
        raise InvalidRequest(f"safetensors: the tensors take {at} bytes, the file holds {size - 8 - length}")


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("the artifact is no safetensors file: its header is no JSON object") from error
    if not isinstance(header, dict):
        raise InvalidRequest("the artifact is no safetensors file: its header is no JSON object")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("safetensors: the header names something twice")
    return found


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    try:
        shape, (begin, end), size = entry["shape"], entry["data_offsets"], SIZES[entry["dtype"]]
        sound = all(type(n) is int and 0 <= n < 1 << 62 for n in (begin, end, *shape))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"safetensors: the header's entry of {name[:128]!r} cannot be understood") from error
    if not sound or len(shape) > 32 or end - begin != math.prod(shape) * size:
        raise InvalidRequest(f"safetensors: the data of {name[:128]!r} does not fill its shape")
    return begin, end, name[:128]
