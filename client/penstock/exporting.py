"""Objects of scikit-learn and torch → bytes that carry no code. Both libraries are imported only where used."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.errors import InvalidInput
from penstock.wire import Array


def is_module(model: Any) -> bool:
    """Whether it is a torch.nn.Module, without importing torch: one cannot exist where torch was never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_estimator(model: Any) -> bool:
    return callable(getattr(model, "fit", None)) and callable(getattr(model, "get_params", None))


def _library(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InvalidInput(f"the package {package} is needed to {purpose}: install {package}") from None


def skops_bytes(estimator: Any) -> bytes:
    skops = _library("skops.io", "push a scikit-learn estimator")
    data: bytes = skops.dumps(estimator)
    return data


def state_bytes(module: Any) -> bytes:
    """The weights of a module in safetensors. Tensors that share memory are written apart."""
    safetensors = _library("safetensors.torch", "push the weights of a torch module")
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    data: bytes = safetensors.save(state)
    return data


def onnx_bytes(module: Any, example: Mapping[str, Array] | None) -> bytes:
    """A torch module → ONNX whose first dimension is variable in every tensor."""
    if example is None:
        raise InvalidInput("a torch module is exported by running it once: give example=, one row of its input")
    torch = _library("torch", "export a torch module")
    _library("onnxscript", "export a torch module to ONNX")
    names = _input_names(module, example)
    rows = {name: torch.from_numpy(array.copy()) for name, array in zip(names, example.values(), strict=True)}
    was_training = module.training
    module.eval()
    try:
        with quiet():
            return _exported(torch, module, rows)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"torch cannot export this module to ONNX: {str(error).splitlines()[0]}") from error
    finally:
        module.train(was_training)


def _input_names(module: Any, example: Mapping[str, Array]) -> list[str]:
    """The example's own names where `forward` takes them, else those of its parameters, in order."""
    parameters = list(inspect.signature(module.forward).parameters)
    if set(example) <= set(parameters):
        return list(example)
    if len(example) > len(parameters):
        raise InvalidInput(f"the module takes {len(parameters)} inputs, the example has {len(example)}")
    return parameters[: len(example)]


def _exported(torch: Any, module: Any, rows: Mapping[str, Any]) -> bytes:
    # A dimension of size 1 would be taken for a constant, so the example is repeated to two rows.
    pairs = {name: torch.cat([row, row]) if row.shape and row.shape[0] == 1 else row for name, row in rows.items()}
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        kwargs=dict(pairs),
        input_names=list(pairs),
        dynamic_shapes={name: {0: batch} if row.shape else None for name, row in pairs.items()},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter (prints, warnings, log lines) out of the caller's output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w", encoding="utf-8") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(level)
