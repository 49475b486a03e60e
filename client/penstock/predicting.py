"""A prediction as a dialogue of calls: the model's metadata (remembered), then the inference.

A *flow* is a generator that yields calls and is sent their results; both clients drive the same one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar

from penstock import calls
from penstock.calls import Call, Record
from penstock.errors import BadRequest, InvalidInput
from penstock.fitting import inputs_for
from penstock.wire import Array, Response

T = TypeVar("T")
Flow = Generator[Call[Any], Any, T]
Prediction = Array | dict[str, Array]

MAIN_OUTPUT = "predict"
"""The output that `predict` answers with, of several: what scikit-learn's own method of that name returns."""


class Signatures:
    """The metadata of models seen, until a request shows that one has changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Record] = {}

    def of(self, model: str, version: str | int | None) -> Flow[tuple[Record, bool]]:
        """The metadata, and whether it was asked for just now."""
        key = (model, str(version or ""))
        if key in self._known:
            return self._known[key], False
        found: Record = yield calls.metadata(model, version)
        self._known[key] = found
        return found, True

    def forget(self, model: str, version: str | int | None) -> None:
        self._known.pop((model, str(version or "")), None)


def infer(
    signatures: Signatures,
    model: str,
    values: Any,
    *,
    version: str | int | None,
    timeout: float | None,
    parameters: Mapping[str, Any] | None,
    outputs: Sequence[str] | None,
) -> Flow[Response]:
    """Fit `values` to the model's inputs and send them; once more where the model turns out to have changed."""
    metadata, fresh = yield from signatures.of(model, version)
    while True:
        try:
            inputs = inputs_for(metadata["inputs"], values)
            response: Response = yield calls.infer(
                model, inputs, version=version, timeout=timeout, parameters=parameters, outputs=outputs
            )
            return response
        except (BadRequest, InvalidInput) as error:
            if fresh:
                raise
            signatures.forget(model, version)
            before = metadata["inputs"]
            metadata, fresh = yield from signatures.of(model, version)
            if metadata["inputs"] == before:
                raise error from None


def main_output(response: Response, outputs: Sequence[str] | None) -> Prediction:
    """One array where there is one output, or one named `predict`; else all by name."""
    arrays = response.outputs
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if outputs is None and MAIN_OUTPUT in arrays:
        return arrays[MAIN_OUTPUT]
    return arrays
