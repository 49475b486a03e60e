"""Exceptions in words, for those who pushed the model."""

from __future__ import annotations

import pytest

from workers.described import described


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no such column", "ValueError: no such column"),
        ("", "ValueError"),
        ("two\nlines\x1b[2J\u2028 and more", "ValueError: two lines [2J and more"),
        ("no file '/root/.cache/a b/w.npy'", "ValueError: no file '…/a b/w.npy'"),
        ("/src/ort/core/reshape.h:84 failed", "ValueError: …/reshape.h:84 failed"),
        (r"C:\Users\me\w.npy is gone", "ValueError: …/w.npy is gone"),
        ("(/tmp/x/y.py:3)", "ValueError: (…/y.py:3)"),
        ("see https://penstock.example/a/b", "ValueError: see https://penstock.example/a/b"),
        ("4 / 2, a/b, 3 km/h, x /y", "ValueError: 4 / 2, a/b, 3 km/h, x /y"),
        ("x" * 500, "ValueError: " + "x" * 388),
    ],
)
def test_what_is_said(text: str, said: str) -> None:
    """One printable line of bounded length; of paths the last name only, whatever else has slashes stays."""
    assert described(ValueError(text)) == said
