"""Does a request fit its model? Inputs by name, datatype and shape; rows; the pieces a batch is made of. Pure."""

from __future__ import annotations

from core.datatypes import Buffer
from core.errors import InvalidRequest
from gateway.batching.entry import BatchKey, ColumnKey
from gateway.exchange import InferRequest, InputTensor
from repository.records import Signature, TensorSpec


class Mould:
    """A model version's signature, prepared for the question: what does it make of a request?"""

    __slots__ = ("_batched", "_fixed", "_max_batch", "_one", "_outputs", "_specs", "signature")

    def __init__(self, signature: Signature, max_batch: int) -> None:
        self.signature = signature
        self._specs = signature.inputs
        self._outputs = {spec.name for spec in signature.outputs}
        self._batched = max_batch > 0
        self._max_batch = max_batch
        self._fixed = self._fixed_key()
        self._one = self._specs[0] if self._batched and self._fixed is not None and len(self._specs) == 1 else None
        """The input of the commonest kind of model: one, batched, its rows all of one shape."""

    def _fixed_key(self) -> BatchKey | None:
        """The one key of a model whose rows all have one shape; None where a dimension is variable."""
        skip = 1 if self._batched else 0
        if any(-1 in spec.shape[skip:] for spec in self._specs):
            return None
        return BatchKey(tuple(ColumnKey(spec.name, spec.datatype, spec.shape[skip:]) for spec in self._specs))

    def press(self, request: InferRequest) -> tuple[BatchKey, int, list[Buffer]]:
        """(batch key, rows, raw pieces in the signature's order). Raises InvalidRequest that names the tensor."""
        inputs = request.inputs
        one = self._one
        if one is not None and len(inputs) == 1 and not request.parameters and request.outputs is None:
            (tensor,) = inputs
            shape = tensor.shape
            if (
                tensor.name == one.name
                and tensor.datatype == one.datatype
                and len(shape) == len(one.shape)
                and shape[1:] == one.shape[1:]
                and 0 < shape[0] <= self._max_batch
            ):
                return self._fixed, shape[0], [tensor.data]  # type: ignore[return-value]  # `_one` implies it
        if len(inputs) != len(self._specs):
            inputs = self._in_order(inputs)
        for tensor, spec in zip(inputs, self._specs, strict=True):
            if tensor.name != spec.name:
                inputs = self._in_order(inputs)
                break
        pieces = []
        for tensor, spec in zip(inputs, self._specs, strict=True):
            if tensor.datatype != spec.datatype or tensor.shape != spec.shape:
                _check(tensor, spec)
            pieces.append(tensor.data)
        if request.outputs is not None:
            self._check_outputs(request)
        key = self._fixed or self._key(inputs)
        if request.parameters:
            key = BatchKey(key.columns, tuple(sorted(request.parameters.items())))
        return key, self._rows(inputs) if self._batched else 1, pieces

    def _in_order(self, inputs: list[InputTensor]) -> list[InputTensor]:
        """Inputs sorted as the signature has them."""
        specs = self._specs
        named = {tensor.name: tensor for tensor in inputs}
        if len(named) != len(inputs):
            twice = next(tensor.name for tensor in inputs if sum(t.name == tensor.name for t in inputs) > 1)
            raise InvalidRequest(f"tensor {twice!r}: it stands in the request more than once")
        for spec in specs:
            if spec.name not in named:
                raise InvalidRequest(f"tensor {spec.name!r}: the model needs it, and the request has none")
        known = {spec.name for spec in specs}
        for name in named:
            if name not in known:
                raise InvalidRequest(f"tensor {name[:128]!r}: the model has no such input; it has {_names(specs)}")
        return [named[spec.name] for spec in specs]

    def _key(self, inputs: list[InputTensor]) -> BatchKey:
        skip = 1 if self._batched else 0
        return BatchKey(tuple(ColumnKey(tensor.name, tensor.datatype, tensor.shape[skip:]) for tensor in inputs))

    def _rows(self, inputs: list[InputTensor]) -> int:
        rows = inputs[0].shape[0]
        for tensor in inputs:
            if tensor.shape[0] != rows:
                raise InvalidRequest(
                    f"tensor {tensor.name!r}: {tensor.shape[0]} rows where {inputs[0].name!r} has {rows}"
                )
        if not 1 <= rows <= self._max_batch:
            raise InvalidRequest(
                f"tensor {inputs[0].name!r}: a batch of {rows} rows; the model takes 1 to {self._max_batch}"
            )
        return rows

    def _check_outputs(self, request: InferRequest) -> None:
        seen = set()
        for wanted in request.outputs or ():
            if wanted.name not in self._outputs:
                raise InvalidRequest(
                    f"output {wanted.name[:128]!r}: the model has no such output; it has "
                    + ", ".join(sorted(self._outputs))
                )
            if wanted.name in seen:
                raise InvalidRequest(f"output {wanted.name!r}: it is asked for more than once")
            seen.add(wanted.name)


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.name for spec in specs)


def _check(tensor: InputTensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(f"tensor {tensor.name!r}: {tensor.datatype} where the model takes {spec.datatype}")
    shape = tensor.shape
    if len(shape) == len(spec.shape):
        for found, width in zip(shape, spec.shape, strict=True):
            if found != width and width != -1:
                break
        else:
            return
    raise InvalidRequest(f"tensor {tensor.name!r}: shape {list(shape)} does not fit the model's {list(spec.shape)}")
