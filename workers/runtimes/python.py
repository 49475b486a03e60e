"""A class from a .py file: the caller's own code, so this is only ever loaded in a child process.

    class Churn:
        def load(self) -> None: ...                                             # optional
        def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...

`predict` may take a second argument named `parameters`: the dict of the request's own parameters.
BYTES arrive as object arrays of bytes, BF16 as ml_dtypes.bfloat16.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import structlog

from core.errors import InvalidRequest
from repository.records import Signature, Version
from workers.described import described
from workers.merge import Arrays
from workers.messages import Scalar
from workers.runtimes.base import writable

log = structlog.get_logger(__name__)
MODULE = "penstock_model"


def load(path: Path, version: Version, hint: Signature, threads: int, device: str = "cpu") -> PythonModel:
    """Run the file, make the class, call its `load`. Raises InvalidRequest naming what is missing or raised."""
    namespace = _run(path)
    made: Any = getattr(namespace, version.entry, None)
    if not isinstance(made, type):
        raise InvalidRequest(f"the file has no class {version.entry!r}")
    predict = getattr(made, "predict", None)
    if not callable(predict):
        raise InvalidRequest(f"the class {version.entry!r} has no method predict(self, inputs)")
    if inspect.iscoroutinefunction(predict):
        raise InvalidRequest(f"the method predict of {version.entry!r} is async: it must be an ordinary one")
    return PythonModel(_made(made))


def _run(path: Path) -> Any:
    loader = SourceFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_loader(MODULE, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        loader.exec_module(module)
    except BaseException as error:
        log.warning("model's file failed", exc_info=error)
        raise InvalidRequest(f"the model's file does not run: {described(error)}") from error
    return module


def _made(cls: Any) -> Any:
    try:
        instance = cls()
        if callable(getattr(instance, "load", None)):
            instance.load()
    except BaseException as error:
        log.warning("model does not load", exc_info=error)
        raise InvalidRequest(f"the model does not load: {described(error)}") from error
    return instance


class PythonModel:
    """Tells nothing of its signature: that is declared, or read off an example."""

    def __init__(self, instance: Any) -> None:
        self.signature = Signature((), ())
        self._predict = instance.predict
        self._takes_parameters = "parameters" in inspect.signature(instance.predict).parameters

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        arrays = {name: writable(array) for name, array in inputs.items()}
        outputs = self._predict(arrays, parameters=parameters) if self._takes_parameters else self._predict(arrays)
        return outputs  # type: ignore[no-any-return] # checked by whoever runs it

    def close(self) -> None:
        self._predict = None
