"""Where a torch model runs."""

from __future__ import annotations

import pytest
import torch

from core.errors import InvalidRequest
from workers.runtimes.devices import place_of


def test_on_the_cpu_tensors_stay_where_they_are() -> None:
    """No copy is made on the way in or out."""
    place, tensor = place_of("cpu"), torch.ones(2, 3)
    assert place.bring(tensor) is tensor
    assert place.fetch([tensor])[0].data_ptr() == tensor.data_ptr()


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidRequest, match="is to run on cuda:0, but torch sees no such device"):
        place_of("cuda:0")
