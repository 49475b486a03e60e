"""Where a torch model runs, and how rows get there and back: in the memory they are in, or over a bus.

To a GPU each tensor goes by way of page-locked memory, so that its copy needs no second one inside the driver and the
call returns at once: copies, kernels and the copies back are queued on one stream and waited for once. torch keeps
page-locked blocks and gives them out again, so after the warm-up none is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from core.errors import InvalidRequest


class Place(Protocol):
    device: torch.device

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of this process's memory, on the device."""

    def fetch(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The device's tensors in this process's memory, there when this returns."""


class Host:
    device = torch.device("cpu")

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def fetch(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.cpu() for tensor in tensors]


class Gpu:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def fetch(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        fetched = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
            for tensor in tensors
        ]
        torch.cuda.current_stream(self.device).synchronize()
        return fetched


def place_of(device: str) -> Place:
    """`cpu`, or `cuda:<index>` among the devices that this process sees. Raises InvalidRequest where it has none."""
    found = torch.device(device)
    if found.type == "cpu":
        return Host()
    if not torch.cuda.is_available():
        raise InvalidRequest(f"the model is to run on {device}, but torch sees no such device here")
    return Gpu(found)
