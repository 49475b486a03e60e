"""What a person calls a model (a file, an estimator, a module, a class) → a manifest and the bytes of an artifact."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from penstock import exporting, onnx_inputs, wire
from penstock.calls import Record
from penstock.errors import InvalidInput
from penstock.fitting import as_array, fit

Progress = Callable[[int, int], None]
"""Called with the bytes sent and their total."""

FORMATS = {".onnx": "onnx", ".safetensors": "torch", ".pt2": "pt2", ".skops": "sklearn", ".py": "python"}
CODE_FORMATS = frozenset({"pt2", "python"})
INSTEAD = {
    ".pt": "save a state as .safetensors (with an architecture) or export the module to .onnx",
    ".pth": "save a state as .safetensors (with an architecture) or export the module to .onnx",
    ".bin": "save a state as .safetensors (with an architecture) or export the module to .onnx",
    ".pkl": "write the estimator with skops.io.dump to .skops, or push the object itself from Python",
    ".pickle": "write the estimator with skops.io.dump to .skops, or push the object itself from Python",
    ".joblib": "write the estimator with skops.io.dump to .skops, or push the object itself from Python",
    ".h5": "export the model to .onnx",
}
"""Files that run code when they are opened, or that no runtime reads, and what to push in their place."""
INPUT = "input"
"""Name of the one input of a model whose artifact names none."""


EXAMPLE_ROWS = 8
"""Rows of an example that are sent, where its first dimension is the batch."""


class Parcel(NamedTuple):
    """`size` of the artifact in bytes; `open()` gives it from its beginning."""

    manifest: Record
    size: int
    open: Callable[[], IO[bytes]]


class _Artifact(NamedTuple):
    format: str
    entry: str
    size: int
    open: Callable[[], IO[bytes]]
    inputs: dict[str, str] | None = None
    """Datatype of each input by name, where the artifact tells them."""


def parcel(
    model: Any,
    *,
    example: Any = None,
    signature: Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    alias: str | None = None,
    allow_code: bool = False,
    architecture: str | None = None,
    tags: Mapping[str, str] | None = None,
    default_deadline_ms: int | None = None,
    queue_bound: int | None = None,
    warmup: Sequence[int] | None = None,
) -> Parcel:
    """Make a model ready to be sent. Raises InvalidInput that says what is missing, and what to do about it."""
    artifact = _artifact(model, example, architecture)
    if artifact.format in CODE_FORMATS and not allow_code:
        raise InvalidInput(
            f"a {artifact.format} model runs its own code at the server: say allow_code=True (--allow-code) if it may"
        )
    options = {
        "entry": artifact.entry or None,
        "max_batch": max_batch,
        "alias": alias,
        "default_deadline_ms": default_deadline_ms,
        "queue_bound": queue_bound,
        "warmup": None if warmup is None else list(warmup),
        "tags": None if tags is None else dict(tags),
        "allow_code": allow_code or None,
        **_description(artifact, example, signature, max_batch),
    }
    manifest = {"format": artifact.format, **{name: value for name, value in options.items() if value is not None}}
    return Parcel(manifest, artifact.size, artifact.open)


# --- artifacts ----------------------------------------------------------------------------------------------------


def _artifact(model: Any, example: Any, architecture: str | None) -> _Artifact:
    if isinstance(model, str | Path):
        return _file(str(model), architecture)
    if inspect.isclass(model):
        return _class(model)
    if exporting.is_module(model):
        if architecture:
            return _bytes("torch", exporting.state_bytes(model), architecture)
        return _onnx_bytes(exporting.onnx_bytes(model, None if example is None else named(example)))
    if exporting.is_estimator(model):
        return _bytes("sklearn", exporting.skops_bytes(model))
    raise InvalidInput(
        f"cannot push a {type(model).__name__}: push a path, a scikit-learn estimator, a torch module, or a class"
    )


def _file(text: str, architecture: str | None) -> _Artifact:
    name, entry = split_entry(text)
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidInput(f"{name}: {INSTEAD.get(suffix, f'a model file ends in one of {known}')}")
    if not path.is_file():
        raise InvalidInput(f"there is no file {name}")
    if suffix == ".py":
        entry = entry or _only_class(path)
    elif suffix == ".safetensors":
        if not architecture:
            raise InvalidInput(
                f"{name} holds weights alone: name the registered architecture they belong to (--architecture NAME; "
                "`penstock models architectures` lists them)"
            )
        entry = architecture
    inputs = onnx_inputs.read(path) if suffix == ".onnx" else None
    return _Artifact(FORMATS[suffix], entry, path.stat().st_size, lambda: path.open("rb"), inputs)


def split_entry(text: str) -> tuple[str, str]:
    """`models.py:Churn` → ("models.py", "Churn"); a path without a class → (path, "")."""
    head, colon, entry = text.rpartition(":")
    if colon and head.endswith(".py"):
        if not entry.isidentifier():
            raise InvalidInput(f"{entry!r} is no class name: write {head}:ClassName")
        return head, entry
    return text, ""


def _only_class(path: Path) -> str:
    """The one class with a `predict` method that the file defines."""
    import ast

    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InvalidInput(f"{path} is no Python file: {error}") from None
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(part, functions) and part.name == "predict" for part in node.body)
    ]
    if len(found) != 1:
        what = "no class" if not found else f"{len(found)} classes"
        raise InvalidInput(f"{path} defines {what} with a predict method: name the one to serve, {path}:ClassName")
    return found[0]


def _class(model: type) -> _Artifact:
    module = sys.modules.get(model.__module__)
    source = getattr(module, "__file__", None)
    if source is None or "." in model.__qualname__:
        raise InvalidInput(
            f"the class {model.__name__} stands in no file of its own: move it to the top of one and push its path, "
            f"models.py:{model.__name__}"
        )
    return _bytes("python", Path(source).read_bytes(), model.__name__)


def _bytes(kind: str, data: bytes, entry: str = "") -> _Artifact:
    return _Artifact(kind, entry, len(data), lambda: io.BytesIO(data))


def _onnx_bytes(data: bytes) -> _Artifact:
    return _bytes("onnx", data)._replace(inputs=onnx_inputs.declared(memoryview(data)))


# --- signature and example ----------------------------------------------------------------------------------------


def _description(
    artifact: _Artifact, example: Any, signature: Mapping[str, Any] | None, max_batch: int | None
) -> Record:
    """The manifest's `signature` and `example`. What the artifact itself declares is not guessed from an example."""
    declared = artifact.inputs or _declared(signature)
    arrays = {} if example is None else _arrays(example, declared)
    described: Record = {}
    if signature is not None:
        described["signature"] = dict(signature)
    elif arrays and artifact.inputs is None:
        described["signature"] = {"inputs": [_spec(name, arrays[name], max_batch) for name in arrays], "outputs": []}
        arrays = arrays if max_batch == 0 else {name: _few(array) for name, array in arrays.items()}
    tensors = _in_json(arrays)
    if tensors:
        described["example"] = {"inputs": tensors}
    return described


def _declared(signature: Mapping[str, Any] | None) -> dict[str, str] | None:
    if signature is None:
        return None
    try:
        return {tensor["name"]: tensor["datatype"] for tensor in signature["inputs"]} or None
    except (KeyError, TypeError):
        raise InvalidInput(
            'a signature is {"inputs": [{"name", "datatype", "shape"}], "outputs": [...]}: its inputs are not so'
        ) from None


def _arrays(example: Any, declared: Mapping[str, str] | None) -> dict[str, wire.Array]:
    arrays = named(example)
    if not declared:
        return arrays
    if not isinstance(example, Mapping) and len(declared) == 1:
        arrays = {next(iter(declared)): arrays[INPUT]}
    unknown = [name for name in arrays if name not in declared]
    if unknown:
        raise InvalidInput(
            f"the example has {unknown[0]!r}, the model takes {', '.join(declared)}: give a dict by name"
        )
    return {name: fit(array, declared[name], name) if declared[name] else array for name, array in arrays.items()}


def named(example: Any) -> dict[str, wire.Array]:
    """An example as arrays by name: one that bears no names becomes the input named `input`."""
    by_name = example if isinstance(example, Mapping) else {INPUT: example}
    return {name: _plain(as_array(value, name), name) for name, value in by_name.items()}


def _plain(array: wire.Array, name: str) -> wire.Array:
    """Objects that are numbers (a frame of several dtypes) as numbers; whatever V2 has no datatype for is refused."""
    if array.dtype.kind == "O" and array.size and not isinstance(array.reshape(-1)[0], str | bytes):
        array = fit(array, "FP64", name)
    wire.datatype_of(array)
    return array


def _spec(name: str, array: wire.Array, max_batch: int | None) -> wire.Tensor:
    """The tensor that an example is an instance of: its first dimension variable, unless the model does not batch."""
    shape = list(array.shape)
    if shape and max_batch != 0:
        shape[0] = -1
    return {"name": name, "datatype": wire.datatype_of(array), "shape": shape}


def _few(array: wire.Array) -> wire.Array:
    return array[:EXAMPLE_ROWS] if array.ndim else array


def _in_json(arrays: Mapping[str, wire.Array]) -> list[wire.Tensor]:
    """The example as the server keeps it; none where JSON cannot carry it (it still gave the signature)."""
    try:
        return [wire.to_json(name, array) for name, array in arrays.items()]
    except InvalidInput:
        return []


# --- sending ------------------------------------------------------------------------------------------------------


class Watched(io.RawIOBase):
    """A file that tells how much of it has been read."""

    def __init__(self, file: IO[bytes], size: int, progress: Progress) -> None:
        super().__init__()
        self._file = file
        self._size = size
        self._progress = progress

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data:
            self._progress(self._file.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def opened(parcel: Parcel, progress: Progress | None) -> Iterator[IO[bytes]]:
    with parcel.open() as file:
        yield file if progress is None else cast("IO[bytes]", Watched(file, parcel.size, progress))
