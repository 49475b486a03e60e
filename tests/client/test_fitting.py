"""Values meet the model's datatypes, and nothing is lost unsaid."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.errors import InvalidInput
from penstock.fitting import fit, inputs_for, out_of
from penstock.wire import FIXED

ONE = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
TWO = [*ONE, {"name": "n", "datatype": "INT32", "shape": [-1]}]

KEPT: list[tuple[Any, str]] = [
    ([1, 2], "FP32"),
    ([1.0, 2.0], "INT64"),
    ([0.1], "FP32"),
    ([0.1], "FP16"),
    ([0.1], "BF16"),
    ([True], "INT8"),
    ([True], "FP64"),
    ([1, 0], "BOOL"),
    ([255], "UINT8"),
    ([float("nan"), float("inf")], "FP32"),
    (np.array([2**63], "<u8"), "UINT64"),
    (np.array([1.5], ml_dtypes.bfloat16), "FP32"),
    (np.array([1, 2.5], object), "FP64"),
    (["a", "b"], "BYTES"),
    ([], "INT32"),
]
LOST: list[tuple[Any, str, str]] = [
    ([1.5], "INT64", "1.5"),
    ([300], "UINT8", "300"),
    ([-1], "UINT8", "-1"),
    ([-1], "UINT64", "-1"),
    (np.array([2**63], "<u8"), "INT64", "9223372036854775808"),
    ([float("nan")], "INT32", "nan"),
    ([float("inf")], "INT64", "inf"),
    ([2.0**63], "INT64", "9.223372036854775808e"),
    ([1e300], "FP32", "1e"),
    ([70000.0], "FP16", "70000"),
    ([2**24 + 1], "FP32", "16777217"),
    ([-(2**63)], "FP16", "-92233"),
    ([2], "BOOL", "2"),
    ([0.5], "BOOL", "0.5"),
]


@pytest.mark.parametrize(("values", "datatype"), KEPT)
def test_what_survives_is_cast(values: Any, datatype: str) -> None:
    """Integers that fit, whole floats, rounding within floating point."""
    array = fit(np.asarray(values), datatype)
    if datatype != "BYTES":
        assert array.dtype == FIXED[datatype]


@pytest.mark.parametrize(("values", "datatype", "shown"), LOST)
def test_what_would_be_lost_is_refused(values: Any, datatype: str, shown: str) -> None:
    """The error names the tensor, the value and the datatype."""
    with pytest.raises(InvalidInput, match=rf"'x': {shown[:6]}.*{datatype}"):
        fit(np.asarray(values), datatype, "x")


@given(st.integers(-(2**63), 2**64 - 1), st.sampled_from(sorted(set(FIXED) - {"BOOL"})))
def test_an_integer_arrives_as_itself_or_not_at_all(value: int, datatype: str) -> None:
    """For every integer that numpy holds and every number datatype."""
    try:
        found = fit(np.array([value]), datatype)
    except InvalidInput:
        return
    assert int(found.astype(object)[0]) == value


@given(st.floats(), st.sampled_from(["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]))
def test_a_float_becomes_the_same_integer_or_none(value: float, datatype: str) -> None:
    """Fractions, NaN, infinity and whatever is out of range never turn into some integer."""
    try:
        found = fit(np.array([value]), datatype)
    except InvalidInput:
        return
    assert int(found[0]) == value


@pytest.mark.parametrize(
    ("code", "value", "outside"),
    [
        ("i8", 2.0**63, True),
        ("i8", -(2.0**63), False),
        ("u8", 2.0**64, True),
        ("u8", 2.0**63, False),
        ("u8", -1.0, True),
        ("i1", 127.0, False),
        ("i1", 128.0, True),
        ("i4", float("nan"), True),
        ("i4", float("-inf"), True),
    ],
)
def test_the_range_of_integers_is_that_of_no_machine(code: str, value: float, outside: bool) -> None:
    """Converting beyond it gives the nearest integer on some machines, so it is never left to them."""
    assert bool(out_of(np.dtype(code), np.array([value]))[0]) is outside


@pytest.mark.parametrize(
    ("declared", "values", "message"),
    [
        (TWO, [[1, 2]], "takes 2 inputs: give a dict with x, n"),
        (ONE, {"y": [[1, 2]]}, "no input 'y': it takes x"),
        (ONE, [[1, 2], [3]], "'x': the rows of a list"),
        (ONE, [["a"]], "'x': the model takes numbers"),
        ([{"name": "x", "datatype": "BYTES"}], [1], "'x': the model takes text or bytes"),
        (ONE, [1j], "no datatype for complex"),
    ],
)
def test_what_does_not_fit_is_named(declared: list[dict[str, Any]], values: Any, message: str) -> None:
    """Unknown names, missing names, ragged rows, text for numbers and the reverse."""
    with pytest.raises(InvalidInput, match=message):
        inputs_for(declared, values)


def test_one_input_needs_no_name() -> None:
    """An array alone is the one input of its model; a dict names them."""
    assert list(inputs_for(ONE, [[1, 2]])) == ["x"]
    assert {name: array.dtype for name, array in inputs_for(TWO, {"n": [1], "x": [[1, 2]]}).items()} == {
        "n": np.dtype("<i4"),
        "x": np.dtype("<f4"),
    }
