"""The sample model `digits`: a convolutional network on scikit-learn's 1,797 handwritten digits, exported to ONNX.

The digits are 8 by 8 grey images of pixel values 0 to 16 (UCI optical recognition of handwritten digits). They are
split once, by class and with a fixed seed: four fifths to train on, one to be tested with.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

Advance = Callable[[int, int], None]
"""Called with the epochs done and their number."""

SEED = 20
EPOCHS = 12
ROWS = 64
RATE = 0.1
MOMENTUM = 0.9
PIXEL_MAX = 16.0
WANTED = 0.97
"""Share of the held-out digits that must be told right."""
LABELS = tuple("0123456789")
EXAMPLE = 8
"""Which held-out digit the line to try classifies."""

SIGNATURE = {
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10], "labels": list(LABELS)}],
}


class Split(NamedTuple):
    """Images FP32 [n, 8, 8] with pixels 0 to 16, classes INT64 [n]; `rows`: of the held-out ones in the data set."""

    images: NDArray[np.float32]
    classes: NDArray[np.int64]
    held_images: NDArray[np.float32]
    held_classes: NDArray[np.int64]
    rows: NDArray[np.int64]


class Network(nn.Module):
    """Pixels [n, 8, 8] → probabilities [n, 10]; `scores` gives them before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, len(LABELS)),
        )

    def scores(self, image: Tensor) -> Tensor:
        found: Tensor = self.layers(image.unsqueeze(1) / PIXEL_MAX)
        return found

    def forward(self, image: Tensor) -> Tensor:
        return self.scores(image).softmax(dim=1)


def held_out() -> Split:
    """The data set, split the same way each time."""
    data = load_digits()
    images = data.images.astype(np.float32)
    classes = data.target.astype(np.int64)
    train, held = train_test_split(np.arange(len(images)), test_size=0.2, random_state=SEED, stratify=classes)
    return Split(images[train], classes[train], images[held], classes[held], held)


def fit(split: Split, advance: Advance) -> Network:
    """Train a network, by stochastic gradient descent with momentum and a falling rate; the same each time.

    The descent is spelt out because torch's own optimizers import its compiler: five seconds for ten lines. On one
    thread: for a network this small a second one gains nothing, and where the machine is busy they wait for each other.
    """
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = Network()
    weights = list(network.parameters())
    speeds = [torch.zeros_like(weight) for weight in weights]
    images, classes = torch.from_numpy(split.images), torch.from_numpy(split.classes)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        for at in range(0, len(images), ROWS):
            rows = order[at : at + ROWS]
            loss = nn.functional.cross_entropy(network.scores(images[rows]), classes[rows])
            _descend(weights, speeds, torch.autograd.grad(loss, weights), RATE * (1 - epoch / EPOCHS))
        advance(epoch + 1, EPOCHS)
    return network.eval()


def _descend(weights: list[nn.Parameter], speeds: list[Tensor], slopes: Sequence[Tensor], rate: float) -> None:
    with torch.no_grad():
        for weight, speed, slope in zip(weights, speeds, slopes, strict=True):
            speed.mul_(MOMENTUM).add_(slope)
            weight.sub_(speed, alpha=rate)


def accuracy(network: Network, split: Split) -> float:
    """Share of the held-out digits that the network tells right."""
    with torch.no_grad():
        found = network(torch.from_numpy(split.held_images)).argmax(dim=1).numpy()
    return float((found == split.held_classes).mean())


def export(network: Network, path: Path) -> None:
    """Write the network as ONNX with a variable number of rows.

    By the tracing exporter: for straight layers it says the same as the newer one, without importing the compiler.
    Its advice to use the newer one is kept out of our output.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 8, 8),),
            path,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": {0: "rows"}, "probabilities": {0: "rows"}},
            dynamo=False,
        )


def request_of(split: Split, which: int) -> dict[str, Any]:
    """A held-out digit as a V2 request; its `id` tells the true class."""
    image = split.held_images[which]
    return {
        "id": f"held-out digit {split.rows[which]}, a {split.held_classes[which]}",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": image.reshape(-1).tolist()}],
    }


def write(folder: Path, advance: Advance) -> None:
    """Train and write `digits.onnx`, its manifest `digits.json`, and `digit.json`, the request to try.

    Raises RuntimeError where the network falls short of what it promises.
    """
    split = held_out()
    network = fit(split, advance)
    reached = accuracy(network, split)
    if reached < WANTED:
        raise RuntimeError(f"digits: {reached:.4f} of the held-out digits are told right, {WANTED} are promised")
    export(network, folder / "digits.onnx")
    tags = {"dataset": "scikit-learn digits", "held-out-accuracy": f"{reached:.4f}"}
    request = request_of(split, EXAMPLE)
    manifest = {"format": "onnx", "signature": SIGNATURE, "example": {"inputs": request["inputs"]}, "tags": tags}
    (folder / "digits.json").write_text(json.dumps(manifest))
    (folder / "digit.json").write_text(json.dumps(request) + "\n")
