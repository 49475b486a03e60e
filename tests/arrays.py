"""Wire bytes of a tensor, as tests look at them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.datatypes import Buffer, DataType, decode_bytes


def to_array(datatype: DataType, shape: tuple[int, ...], data: Buffer, name: str = "tensor") -> NDArray[Any]:
    """A tensor's wire bytes → an array of `shape`: a read-only view for fixed sizes, objects of bytes for BYTES."""
    if datatype.size:
        return np.frombuffer(data, dtype=datatype.numpy).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    array = np.empty(count, dtype=object)
    array[:] = decode_bytes(data, count, name)
    return array.reshape(shape)
