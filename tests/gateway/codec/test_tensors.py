"""What every codec holds a tensor to."""

from __future__ import annotations

import pytest

from core.errors import InvalidRequest
from gateway.codec import tensors


def test_rank_and_elements_are_bounded_as_the_process_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the settings of the process, once set; the error names the bound."""
    for name in ("MAX_RANK", "MAX_ELEMENTS"):
        monkeypatch.setattr(tensors, name, getattr(tensors, name))
    tensors.bound(2, 10)
    assert tensors.elements((2, 5), "x") == 10
    with pytest.raises(InvalidRequest, match="at most 2"):
        tensors.elements((1, 1, 1), "x")
    with pytest.raises(InvalidRequest, match="at most 10"):
        tensors.elements((2, 6), "x")
