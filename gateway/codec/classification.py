"""The classification extension: an output's k highest values as text. Pure.

T:docs/protocol/extension_classification.md: BYTES of shape [batch, k] (or [k] where the model does not batch),
each element `<value>:<index>` or `<value>:<index>:<label>`, descending by value.
"""

from __future__ import annotations

from math import prod

import numpy as np

from core.datatypes import DATATYPES, encode_bytes
from core.errors import InvalidRequest
from workers.messages import Output


def classify(output: Output, k: int, labels: tuple[str, ...], batched: bool) -> Output:
    """The `k` best of each row of a numeric output; `k` beyond the number of classes gives all of them.

    Raises InvalidRequest for BYTES, which have no order, and for an output without classes.
    """
    kind = DATATYPES[output.datatype]
    if not kind.size:
        raise InvalidRequest(f"output {output.name!r}: classification needs numbers, not BYTES")
    rows = output.shape[0] if batched and output.shape else 1
    classes = prod(output.shape) // rows if rows else 0
    if not classes:
        raise InvalidRequest(f"output {output.name!r}: it has no classes to choose from")
    values = np.frombuffer(output.data, kind.numpy).reshape(rows, classes)
    best = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :k]
    texts = [_text(values[row, index], int(index), labels) for row in range(rows) for index in best[row]]
    width = best.shape[1]
    return Output(output.name, "BYTES", (rows, width) if batched else (width,), encode_bytes(texts))


def _text(value: np.generic, index: int, labels: tuple[str, ...]) -> bytes:
    number = f"{float(value):f}" if value.dtype.kind not in "iub" else str(int(value))
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()
