"""Files that hold model input: V2 requests, bare lists and dicts in JSON, .npy, .npz."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from penstock.errors import InvalidInput
from penstock.fitting import as_array, fit
from penstock.wire import Array, from_json

RESERVED = frozenset({"binary_data_output"})
"""Request parameters that say how the answer is written: not the file's business."""


class Input(NamedTuple):
    """`values`: an array for a model of one input, or arrays by name. `id`, `parameters`: of a V2 request."""

    values: Array | dict[str, Array]
    id: str = ""
    parameters: dict[str, Any] | None = None
    outputs: list[str] | None = None


def read_input(name: str) -> Input:
    """The input in a file, `-` = stdin. Raises InvalidInput that says what is wrong with it."""
    data = sys.stdin.buffer.read() if name == "-" else _bytes(Path(name))
    what = "standard input" if name == "-" else name
    if data.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return Input(_arrays(data, what))
    try:
        return from_document(json.loads(data))
    except ValueError as error:
        raise InvalidInput(f"{what} is no JSON, .npy or .npz: {error}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{what}: {error.message}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None


def _arrays(data: bytes, what: str) -> Array | dict[str, Array]:
    """Arrays that numpy saved; those of Python objects are refused by numpy itself."""
    try:
        found = np.load(io.BytesIO(data))
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except Exception as error:  # numpy raises whatever the file's parser meets
        raise InvalidInput(f"{what} cannot be read by numpy: {error}") from None


def from_document(document: Any) -> Input:
    """Parsed JSON: a V2 request, a bare nested list, or lists by name."""
    if isinstance(document, list):
        return Input(as_array(document))
    if not isinstance(document, dict) or not document:
        raise InvalidInput('neither a V2 request, nor a list, nor {"name": list}')
    if _is_request(document):
        return _request(document)
    return Input({name: as_array(value, name) for name, value in document.items()})


def _is_request(document: dict[str, Any]) -> bool:
    inputs = document.get("inputs")
    return isinstance(inputs, list) and all(isinstance(tensor, dict) for tensor in inputs)


def _request(document: dict[str, Any]) -> Input:
    parameters = {name: value for name, value in document.get("parameters", {}).items() if name not in RESERVED}
    outputs = [output["name"] for output in document["outputs"]] if document.get("outputs") else None
    arrays = dict(_tensor(tensor) for tensor in document["inputs"])
    return Input(arrays, str(document.get("id", "")), parameters or None, outputs)


def _tensor(tensor: dict[str, Any]) -> tuple[str, Array]:
    name = str(tensor.get("name", "?"))
    try:
        if tensor["datatype"] == "BYTES":
            return name, from_json(tensor)
        return name, fit(np.array(tensor["data"]), tensor["datatype"], name).reshape(tensor["shape"])
    except KeyError as error:
        raise InvalidInput(f"tensor {name!r}: no known {str(error.args[0])!r}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"tensor {name!r}: data, datatype and shape do not agree ({error})") from None
