"""The classification extension: the best k of each row, as text."""

from __future__ import annotations

import numpy as np
import pytest

from core.datatypes import decode_bytes
from core.errors import InvalidRequest
from gateway.codec.classification import classify
from workers.messages import Output


def scores(values: list[list[float]], dtype: str = "f4", datatype: str = "FP32") -> Output:
    array = np.array(values, dtype)
    return Output("y", datatype, array.shape, array.tobytes())


def texts(output: Output) -> list[str]:
    return [text.decode() for text in decode_bytes(output.data, int(np.prod(output.shape)))]


def test_best_first_with_labels() -> None:
    """Each row's k best, descending, as value:index:label; without a label where there is none."""
    found = classify(scores([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]]), 2, ("a", "b"), batched=True)
    assert (found.datatype, found.shape) == ("BYTES", (2, 2))
    assert texts(found) == ["0.700000:1:b", "0.200000:2", "0.500000:0:a", "0.250000:1:b"]


def test_unbatched_and_more_than_there_are() -> None:
    """Without batching the shape is [k]; a k beyond the classes gives all of them; integers stay integers."""
    found = classify(scores([[3, 9]], "<i8", "INT64"), 5, (), batched=False)
    assert found.shape == (2,)
    assert texts(found) == ["9:1", "3:0"]


@pytest.mark.parametrize(
    "output", [Output("y", "BYTES", (1,), b"\x00\x00\x00\x00"), Output("y", "FP32", (0, 3), b""), scores([[]])]
)
def test_what_has_no_classes(output: Output) -> None:
    """BYTES and empty outputs are refused by name."""
    with pytest.raises(InvalidRequest, match="'y'"):
        classify(output, 1, (), batched=True)
