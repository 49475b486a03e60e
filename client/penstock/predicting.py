"""A prediction as a dialogue of calls: what the model takes (remembered), then the inference, in as many requests as
its largest batch makes necessary.

A *flow* is a generator that yields calls and is sent their results; both clients drive the same one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from penstock import calls
from penstock.calls import Call, Record
from penstock.errors import BadRequest, InvalidInput, ServerError, Unavailable
from penstock.fitting import inputs_for
from penstock.wire import Array, Response, Tensor

T = TypeVar("T")
Flow = Generator[Call[Any], Any, T]
Prediction = Any
"""An array, or arrays by name: which of them, the model decides."""

MAIN_OUTPUT = "predict"
"""The output that `predict` answers with, of several: what scikit-learn's own method of that name returns."""
ATTEMPTS = 3
"""How often rows that need several requests are sent anew because the model's version changed between them."""


class Taken(NamedTuple):
    """What a model takes: its declared inputs, and the rows of one request (0: it does not batch)."""

    inputs: list[Tensor]
    max_batch: int


@dataclass(frozen=True)
class Question:
    """What was asked, and how: the arguments of `Client.infer`."""

    model: str
    values: Any
    version: str | int | None = None
    timeout: float | None = None
    parameters: Mapping[str, Any] | None = None
    outputs: Sequence[str] | None = None


class Signatures:
    """What the models seen so far take, until a request shows that one has changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Taken] = {}

    def of(self, model: str, version: str | int | None) -> Flow[tuple[Taken, bool]]:
        """What a model takes, and whether the server was asked for it just now."""
        key = (model, str(version or ""))
        if key in self._known:
            return self._known[key], False
        metadata: Record = yield calls.metadata(model, version)
        self._known[key] = Taken(metadata["inputs"], (yield from _max_batch(model, version)))
        return self._known[key], True

    def forget(self, model: str) -> None:
        for key in [key for key in self._known if key[0] == model]:
            del self._known[key]


def _max_batch(model: str, version: str | int | None) -> Flow[int]:
    """The rows of one request; 0 where the server does not tell (the extension is optional)."""
    try:
        config: Record = yield calls.config(model, version)
    except ServerError:
        return 0
    return int(config.get("max_batch_size", 0))


def infer(signatures: Signatures, question: Question) -> Flow[Response]:
    """Fit the values to the model's inputs and send them; once more where the model turns out to have changed."""
    taken, fresh = yield from signatures.of(question.model, question.version)
    try:
        return (yield from _ask(question, taken))
    except (BadRequest, InvalidInput):
        if fresh:
            raise
        signatures.forget(question.model)
        now, _ = yield from signatures.of(question.model, question.version)
        if now == taken:
            raise
    return (yield from _ask(question, now))


def _ask(question: Question, taken: Taken) -> Flow[Response]:
    pieces = split(inputs_for(taken.inputs, question.values), taken.max_batch)
    for _ in range(ATTEMPTS):
        responses: list[Response] = []
        for piece in pieces:
            response: Response = yield _call(question, piece)
            responses.append(response)
        if len({response.version for response in responses}) == 1:
            return joined(responses)
    raise Unavailable(f"the version of {question.model} kept changing while its rows were sent: name a version")


def _call(question: Question, inputs: Mapping[str, Array]) -> Call[Response]:
    return calls.infer(
        question.model,
        inputs,
        version=question.version,
        timeout=question.timeout,
        parameters=question.parameters,
        outputs=question.outputs,
    )


def split(inputs: dict[str, Array], max_batch: int) -> list[dict[str, Array]]:
    """The rows of a request in pieces that the model takes; as they are where rows are not what they have in common."""
    rows = {array.shape[:1] for array in inputs.values()}
    if max_batch < 1 or len(rows) != 1 or () in rows:
        return [inputs]
    (count,) = rows.pop()
    starts = range(0, max(count, 1), max_batch)
    return [{name: array[at : at + max_batch] for name, array in inputs.items()} for at in starts]


def joined(responses: Sequence[Response]) -> Response:
    """The answers to the pieces of one request, in their order, as the answer to the whole."""
    first = responses[0]
    if len(responses) == 1:
        return first
    outputs = {name: np.concatenate([response.outputs[name] for response in responses]) for name in first.outputs}
    return first._replace(outputs=outputs)


def main_output(response: Response, outputs: Sequence[str] | None) -> Prediction:
    """One array where there is one output, or one named `predict`; else all by name."""
    arrays = response.outputs
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if outputs is None and MAIN_OUTPUT in arrays:
        return arrays[MAIN_OUTPUT]
    return arrays
