"""PyTorch: weights in safetensors with an architecture of our registry, and exported programs (.pt2).

A .pt2 unpickles when it is loaded, so it is code: only ever loaded in a child process. An exported program tells its
signature; one that was exported without a dynamic batch dimension has fixed shapes, and cannot batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file
from torch.export.passes import move_to_device_pass

from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec, Version
from workers.described import described
from workers.merge import Array, Arrays
from workers.messages import Scalar
from workers.runtimes.architectures import build
from workers.runtimes.base import writable
from workers.runtimes.devices import Place, place_of
from workers.runtimes.safetensors_header import check_header

DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
Call = Callable[[list[torch.Tensor]], Any]


def load(path: Path, version: Version, hint: Signature, threads: int, device: str = "cpu") -> TorchModel:
    """Load weights or a program. Raises InvalidRequest that says what is wrong with the artifact."""
    torch.set_num_threads(threads)
    place = place_of(device)
    if version.format == "pt2":
        return _program(path, hint, place)
    return _weights(path, version.entry, hint, place)


def _weights(path: Path, architecture: str, hint: Signature, place: Place) -> TorchModel:
    check_header(path)
    try:
        state = load_file(path)
    except Exception as error:
        raise InvalidRequest("the artifact is no safetensors file") from error
    built = build(architecture, state)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    datatype = DATATYPES[dtypes.pop()] if len(dtypes) == 1 else "FP32"
    told = Signature(
        (TensorSpec("input", datatype, (-1, *built.row)),), (TensorSpec("output", datatype, (-1, *built.answer)),)
    )
    module = built.module.to(place.device)
    return TorchModel(lambda tensors: module(*tensors), renamed(told, hint), place)


def _program(path: Path, hint: Signature, place: Place) -> TorchModel:
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
        graph = program.graph_signature
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        inputs = tuple(_spec(name, values.get(name)) for name in graph.user_inputs if isinstance(name, str))
        outputs = tuple(_spec(name, value) for name, value in _named_outputs(program, graph.user_outputs, values))
        module = move_to_device_pass(program, place.device).module()
    except InvalidRequest:
        raise
    except Exception as error:
        raise InvalidRequest(f"the artifact is no exported program: {described(error)}") from error
    keywords = _keywords(program)
    return TorchModel(
        lambda tensors: _call(module, tensors, keywords), renamed(Signature(inputs, outputs), hint), place
    )


def _call(module: Any, tensors: list[torch.Tensor], keywords: list[str]) -> Any:
    positional = len(tensors) - len(keywords)
    return module(*tensors[:positional], **dict(zip(keywords, tensors[positional:], strict=True)))


def _keywords(program: Any) -> list[str]:
    """Names of the arguments that the program takes by keyword; they come last."""
    return list(program.example_inputs[1]) if program.example_inputs else []


def _named_outputs(program: Any, names: tuple[Any, ...], values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A program that returns a dict names its outputs; else they are output, or output_0, output_1, …"""
    spec = program.call_spec.out_spec
    if spec is not None and spec.type is dict:
        labels = [str(key) for key in spec.context]
    elif len(names) == 1:
        labels = ["output"]
    else:
        labels = [f"output_{at}" for at in range(len(names))]
    if len(labels) != len(names):
        raise InvalidRequest("the program must return a tensor, a tuple of tensors or a dict of tensors")
    for label, name in zip(labels, names, strict=True):
        yield label, values.get(name)


def _spec(name: str, value: Any) -> TensorSpec:
    datatype = DATATYPES.get(getattr(value, "dtype", None))  # type: ignore[arg-type]
    if datatype is None:
        raise InvalidRequest(f"the program's {name!r} is no tensor of a datatype that can be served")
    return TensorSpec(name, datatype, tuple(d if isinstance(d, int) else -1 for d in value.shape))


def renamed(told: Signature, hint: Signature) -> Signature:
    """What the artifact tells, with the names (and labels) of the hint: torch knows tensors by their position."""
    return Signature(_renamed(told.inputs, hint.inputs), _renamed(told.outputs, hint.outputs))


def _renamed(told: tuple[TensorSpec, ...], hint: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    if not hint:
        return told
    if len(hint) != len(told):
        raise InvalidRequest(f"the signature names {len(hint)} tensors where the artifact has {len(told)}")
    if {spec.name for spec in told} == {spec.name for spec in hint}:
        return told
    return tuple(TensorSpec(h.name, t.datatype, t.shape, h.labels) for t, h in zip(told, hint, strict=True))


class TorchModel:
    """`call` takes tensors in the order of the signature's inputs; returns a tensor, several, or a dict of them."""

    def __init__(self, call: Call, signature: Signature, place: Place) -> None:
        self.signature = signature
        self._call: Call | None = call
        self._place = place
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        assert self._call is not None
        try:
            with torch.inference_mode():
                outputs = self._call([self._place.bring(_tensor(inputs[name])) for name in self._inputs])
                fetched = self._place.fetch(_flat(outputs))
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return dict(zip(self._outputs, map(_array, fetched), strict=True))

    def close(self) -> None:
        self._call = None


def _flat(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return list(outputs.values() if isinstance(outputs, dict) else outputs)


def _tensor(array: Array) -> torch.Tensor:
    array = writable(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())
