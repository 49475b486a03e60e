"""Imports skops without torch.

skops looks at every module of scikit-learn when it is imported, and some of those import torch, CuPy and Dask where
they are installed: 500 MB and seconds that serving an estimator has no use for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

ADAPTERS = "sklearn.externals.array_api_compat."
HEAVY = frozenset({"torch", "cupy", "dask"})


class _Refuse:
    """A finder on `sys.meta_path` for which the adapters to the heavy libraries do not exist."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith(ADAPTERS) and name.rpartition(".")[2] in HEAVY:
            raise ModuleNotFoundError(name)
        return None


@contextmanager
def without_adapters() -> Iterator[None]:
    refuse = _Refuse()
    sys.meta_path.insert(0, refuse)
    try:
        yield
    finally:
        sys.meta_path.remove(refuse)


def skops_io() -> ModuleType:
    """The module `skops.io`."""
    with without_adapters():
        return importlib.import_module("skops.io")
