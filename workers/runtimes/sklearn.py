"""scikit-learn estimators in the skops format: no code is run but the library's own.

One input of two dimensions. Outputs, those that the estimator offers:

    predict         the labels, values or clusters
    predict_proba   FP64 [-1, classes], with the classes as labels; else decision_function, as FP64
    transform       of an estimator that does not predict
"""

from __future__ import annotations

import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import threadpoolctl
from sklearn.utils.validation import check_is_fitted

from core.datatypes import DATATYPES, datatype_of
from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec, Version
from workers.described import described
from workers.merge import Array, Arrays
from workers.messages import Scalar
from workers.runtimes.base import writable
from workers.runtimes.light_import import skops_io

log = structlog.get_logger(__name__)
skops = skops_io()

MAX_UNPACKED = 4 << 30
MAX_SCHEMA = 256 << 20
MAX_RATIO = 200
"""Unpacked bytes for each packed one, beyond the first 64 MiB: weights hardly compress, bombs do."""


def load(path: Path, version: Version, hint: Signature, threads: int, device: str = "cpu") -> SklearnModel:
    """Load an estimator. Raises InvalidRequest for an unsound archive, untrusted types, or what is no estimator."""
    check_archive(path)
    try:
        untrusted = skops.get_untrusted_types(file=path)
        if untrusted:
            raise InvalidRequest(_distrust(untrusted))
        estimator = skops.load(path, trusted=[])
    except InvalidRequest:
        raise
    except BaseException as error:
        log.warning("skops refuses", exc_info=error)
        raise InvalidRequest(f"the artifact is no skops file that can be loaded ({type(error).__name__})") from error
    return SklearnModel(_fitted(estimator), hint, threads)


def _distrust(types: list[str]) -> str:
    """Trees are among them: their nodes are indices into memory, which nothing checks."""
    advice = "; convert trees and forests to ONNX" if any(name.startswith("sklearn.tree.") for name in types) else ""
    return f"the artifact holds types that are not trusted: {', '.join(types)[:1000]}{advice}"


def check_archive(path: Path) -> None:
    """Refuse what is no zip archive, names a file twice, or would unpack to more than it should."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidRequest("the artifact is no skops file: it is no zip archive") from error
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise InvalidRequest("skops: the archive names a file twice")
    if "schema.json" not in names:
        raise InvalidRequest("the artifact is no skops file: it has no schema.json")
    unpacked = sum(entry.file_size for entry in entries)
    schema = next(entry.file_size for entry in entries if entry.filename == "schema.json")
    allowed = min(MAX_UNPACKED, (64 << 20) + MAX_RATIO * path.stat().st_size)
    if unpacked > allowed or schema > MAX_SCHEMA:
        raise InvalidRequest(f"skops: the archive would unpack to {unpacked} bytes, more than is allowed")


def _fitted(estimator: Any) -> Any:
    if not hasattr(estimator, "get_params") or not any(hasattr(estimator, m) for m in ("predict", "transform")):
        raise InvalidRequest(
            f"the artifact is no estimator that predicts or transforms, but {type(estimator).__name__}"
        )
    try:
        check_is_fitted(estimator)
    except Exception as error:
        raise InvalidRequest(f"the estimator is not fitted: {described(error)}") from error
    serial = {name: 1 for name in estimator.get_params() if name.split("__")[-1] == "n_jobs"}
    return estimator.set_params(**serial)


class SklearnModel:
    """Every output is computed by the estimator's method of the same name; only those that were declared, if any."""

    def __init__(self, estimator: Any, hint: Signature, threads: int) -> None:
        self._threads = threads
        self._limited = threading.local()
        spec = _input(estimator, hint)
        offered = _methods(estimator)
        names = [o.name for o in hint.outputs if o.name in offered] or list(offered)
        self._methods: dict[str, Callable[[Array], Any]] = {name: offered[name] for name in names}
        self._input = spec.name
        outputs = tuple(_output(name, method, estimator, spec) for name, method in self._methods.items())
        self.signature = Signature((spec,), () if None in outputs else tuple(o for o in outputs if o is not None))

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        if not hasattr(self._limited, "by"):  # OpenMP keeps its number of threads by thread
            self._limited.by = threadpoolctl.threadpool_limits(self._threads)
        rows = writable(inputs[self._input])
        return {name: _plain(method(rows)) for name, method in self._methods.items()}

    def close(self) -> None:
        self._methods = {}


def _input(estimator: Any, hint: Signature) -> TensorSpec:
    """Its name and datatype are the hint's, else `input` and FP64; its columns those the estimator was fitted on."""
    if len(hint.inputs) > 1:
        raise InvalidRequest("an estimator takes one input of two dimensions, the signature names more")
    columns = int(getattr(estimator, "n_features_in_", -1))
    if not hint.inputs:
        return TensorSpec("input", "FP64", (-1, columns))
    given = hint.inputs[0]
    return TensorSpec(given.name, given.datatype, (-1, columns) if columns > 0 else (-1, *given.shape[1:]))


def _methods(estimator: Any) -> dict[str, Callable[[Array], Any]]:
    if not hasattr(estimator, "predict"):
        return {"transform": estimator.transform}
    scores = next((name for name in ("predict_proba", "decision_function") if hasattr(estimator, name)), None)
    return {name: getattr(estimator, name) for name in ("predict", scores) if name is not None}


def _output(name: str, method: Callable[[Array], Any], estimator: Any, spec: TensorSpec) -> TensorSpec | None:
    """Read off a run on one row of zeros; None where the estimator does not take that."""
    row = DATATYPES[spec.datatype]
    if not row.size or -1 in spec.shape[1:]:
        return None
    try:
        array = _plain(method(np.zeros((1, *spec.shape[1:]), row.numpy)))
    except Exception as error:
        log.info("an estimator refuses zeros", error=described(error))
        return None
    classes = getattr(estimator, "classes_", None)
    labelled = name != "predict" and isinstance(classes, np.ndarray) and array.shape[1:] == classes.shape
    labels = tuple(map(str, classes.tolist())) if labelled and classes is not None else ()
    return TensorSpec(name, datatype_of(array.dtype).name, (-1, *array.shape[1:]), labels)


def _plain(result: Any) -> Array:
    """A dense array of what a method returned."""
    if hasattr(result, "toarray"):
        result = result.toarray()
    return np.asarray(result)


warnings.filterwarnings("ignore", message="X does not have valid feature names")
