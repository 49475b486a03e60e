"""What every runtime offers: `load(path, version, hint, threads, device) -> Model`, one file a format.

    onnx.py     onnxruntime          torch.py   safetensors of a registered architecture, and .pt2 (code)
    sklearn.py  skops                python.py  a class from a .py file (code)

A runtime's libraries are imported when its first model is loaded, never before.
"""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import Protocol, cast

from core.errors import Internal
from repository.records import Signature, Version
from workers.merge import Array, Arrays
from workers.messages import Scalar

MODULES = {
    "onnx": "workers.runtimes.onnx",
    "torch": "workers.runtimes.torch",
    "pt2": "workers.runtimes.torch",
    "sklearn": "workers.runtimes.sklearn",
    "python": "workers.runtimes.python",
}
"""Artifact format → the module that loads it."""
ON_GPU = frozenset({"torch", "pt2", "python"})
"""Formats of which a model can use the GPU that it is given; the others run on the CPU whatever there is."""


class Model(Protocol):
    """A loaded model; used by one thread at a time."""

    @property
    def signature(self) -> Signature:
        """What the artifact itself tells, in the names of the hint where it has none: may be empty on either side."""

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        """Outputs by name. Raises MemoryError when memory runs out, anything else for its own failures."""

    def close(self) -> None:
        """Give back what the model holds; it is not run again."""


class Runtime(Protocol):
    def load(self, path: Path, version: Version, hint: Signature, threads: int, device: str) -> Model:
        """Load an artifact.

        `hint`: the signature as far as it was declared or an example shows it. `threads`: of one execution.
        `device`: `cpu`, or `cuda:<index>` for those that can use it.
        Raises InvalidRequest that says what is wrong with the artifact.
        """


def load(path: Path, version: Version, hint: Signature, threads: int, isolated: bool, device: str = "cpu") -> Model:
    """Load by format. `isolated`: whether this process may run the code that an artifact brings."""
    if version.carries_code and not isolated:
        raise Internal(f"{version.key} carries code and must run in a process of its own")
    return _runtime(MODULES[version.format]).load(path, version, hint, threads, device)


def _runtime(name: str) -> Runtime:
    """Imported at first use. Its libraries' objects, hundreds of thousands that never go, are then taken out of the
    collector's sight: else each full collection would hold up the whole process for tenths of a second."""
    new = name not in sys.modules
    module = importlib.import_module(name)
    if new:
        gc.freeze()
    return cast(Runtime, module)


def writable(array: Array) -> Array:
    """The array, copied where it is a read-only view of a request's bytes: some libraries and models write to it."""
    return array if array.flags.writeable else array.copy()
