"""The torch modules that weights in safetensors may be loaded into: everything is read off the weights' shapes.

Names and descriptions stand in `repository/architectures.py`, for those who do not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.errors import InvalidRequest

State = dict[str, Tensor]


class Built(NamedTuple):
    """A module without its weights; `row` and `answer`: the shapes of one row of its input and of its output."""

    module: nn.Module
    row: tuple[int, ...]
    answer: tuple[int, ...]


class Mlp(nn.Sequential):
    """Linear layers with ReLU between them, as `nn.Sequential(Linear, ReLU, Linear, …)` numbers them: 0, 2, 4, …"""

    def __init__(self, sizes: list[int]) -> None:
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU()]
        super().__init__(*layers[:-1])


class DigitsCnn(nn.Module):
    """8 × 8 grey images, FP32 [rows, 1, 8, 8] → 10 logits: two convolutions, one pooling, two linear layers."""

    def __init__(self, channels: int = 16, wide: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, wide, 3, padding=1)
        self.fc1 = nn.Linear(wide * 16, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.conv1(images))
        maps = torch.max_pool2d(torch.relu(self.conv2(maps)), 2)
        out: Tensor = self.fc2(torch.relu(self.fc1(maps.flatten(1))))
        return out


def _mlp(state: State) -> Built:
    layers = sorted(int(name.split(".")[0]) for name in state if re.fullmatch(r"\d{1,3}\.weight", name))
    weights = [state[f"{layer}.weight"] for layer in layers]
    if not weights or layers != list(range(0, 2 * len(layers), 2)) or any(w.dim() != 2 for w in weights):
        raise InvalidRequest("mlp: the weights must be named 0.weight, 0.bias, 2.weight, 2.bias, …, as in Sequential")
    sizes = [int(weights[0].shape[1]), *(int(w.shape[0]) for w in weights)]
    return Built(Mlp(sizes), (sizes[0],), (sizes[-1],))


def _digits_cnn(state: State) -> Built:
    try:
        sizes = [int(state[name].shape[0]) for name in ("conv1.weight", "conv2.weight", "fc1.weight")]
    except (KeyError, IndexError) as error:
        raise InvalidRequest("digits-cnn: the weights must be those of conv1, conv2, fc1 and fc2") from error
    return Built(DigitsCnn(*sizes), (1, 8, 8), (10,))


BUILDERS: dict[str, Callable[[State], Built]] = {"mlp": _mlp, "digits-cnn": _digits_cnn}


def build(name: str, state: State) -> Built:
    """The architecture of that name with these weights, in evaluation mode.

    Raises InvalidRequest for an unknown name, and for weights that are missing, left over or of other shapes.
    """
    builder = BUILDERS.get(name)
    if builder is None:
        raise InvalidRequest(f"{name!r} is no registered architecture: there are {', '.join(BUILDERS)}")
    with torch.device("meta"):
        built = builder(state)
    expected = {key: tuple(tensor.shape) for key, tensor in built.module.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in state.items()}
    for key in sorted(expected.keys() | given.keys()):
        if expected.get(key) != given.get(key):
            raise InvalidRequest(
                f"{name}: the tensor {key!r} has the shape {_shape(given.get(key))}, not {_shape(expected.get(key))}"
            )
    built.module.load_state_dict(state, assign=True)
    built.module.eval().requires_grad_(False)
    return built


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
