"""Signatures: what one may be, whether it can batch, and how what was given meets what was found. Pure."""

from __future__ import annotations

from math import prod

from core.datatypes import DATATYPES
from core.errors import InvalidRequest
from repository.records import Signature, TensorSpec

MAX_RANK = 32
MAX_ELEMENTS = 1 << 40
"""Elements that the fixed dimensions of one tensor may multiply to."""
MAX_NAME = 256
"""Characters of a tensor's name or label."""


def batches(signature: Signature) -> bool:
    """Whether the first dimension of every tensor is variable."""
    return all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))


def check_batched(signature: Signature, max_batch: int) -> None:
    """Where a model batches, the first dimension of every tensor is the batch. Raises InvalidRequest naming one."""
    for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        for spec in specs:
            if max_batch > 0 and spec.shape[:1] != (-1,):
                raise InvalidRequest(
                    f"signature.{side}: with max_batch {max_batch} the first dimension of {spec.name!r} is the batch "
                    f"and must be -1, not {list(spec.shape)}; or set max_batch to 0"
                )


def warmup_sizes(max_batch: int, asked: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Rows of each warm-up execution: those asked for, else the powers of two up to the maximum, and that."""
    if max_batch == 0:
        return (1,)
    powers = {1 << power for power in range(max_batch.bit_length())}
    return tuple(sorted({min(size, max_batch) for size in asked if size > 0} or powers | {max_batch}))


def check_signature(signature: Signature, max_tensors: int) -> None:
    """Raise InvalidRequest for names, datatypes, shapes or labels that cannot be."""
    for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        place = f"signature.{side}"
        if len(specs) > max_tensors:
            raise InvalidRequest(f"{place}: {len(specs)} tensors, at most {max_tensors} are served")
        check_distinct([spec.name for spec in specs], place)
        for spec in specs:
            check_tensor(spec.name, spec.datatype, spec.shape, place)
            _check_labels(spec, place)
    if any(spec.labels for spec in signature.inputs):
        raise InvalidRequest("signature.inputs: labels belong to outputs")


def check_tensor(name: str, datatype: str, shape: tuple[int, ...], place: str) -> None:
    check_text(name, f"{place}: a tensor's name", MAX_NAME)
    if datatype not in DATATYPES:
        raise InvalidRequest(
            f"{place}: {name!r} has datatype {datatype[:32]!r}, which is none of {', '.join(DATATYPES)}"
        )
    if len(shape) > MAX_RANK:
        raise InvalidRequest(f"{place}: {name!r} has {len(shape)} dimensions, at most {MAX_RANK} are served")
    if any(size != -1 and size < 1 for size in shape):
        raise InvalidRequest(f"{place}: {name!r} has shape {list(shape)}: a dimension is -1 (variable) or at least 1")
    if prod(size for size in shape if size > 0) > MAX_ELEMENTS:
        raise InvalidRequest(f"{place}: {name!r} has shape {list(shape)}: more than {MAX_ELEMENTS} elements")


def _check_labels(spec: TensorSpec, place: str) -> None:
    for label in spec.labels:
        check_text(label, f"{place}: a label of {spec.name!r}", MAX_NAME)


def check_distinct(names: list[str], place: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"{place}: there are two tensors named {name[:MAX_NAME]!r}")
        seen.add(name)


def check_text(text: str, what: str, limit: int) -> None:
    if not 1 <= len(text) <= limit or not text.isprintable():
        raise InvalidRequest(f"{what} is 1 to {limit} printable characters, not {text[:64]!r}")


def fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether two shapes can be of one tensor: of one rank, with equal sizes wherever neither is variable."""
    return len(shape) == len(declared) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(shape, declared, strict=True)
    )


def completed(given: Signature, found: Signature) -> Signature:
    """What was given, with what was found at the first load where nothing was given.

    Raises InvalidRequest where the two contradict each other.
    """
    return Signature(
        _completed(given.inputs, found.inputs, "inputs"), _completed(given.outputs, found.outputs, "outputs")
    )


def _completed(given: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...], side: str) -> tuple[TensorSpec, ...]:
    if not given:
        return found
    by_name = {spec.name: spec for spec in found}
    if by_name and by_name.keys() != {spec.name for spec in given}:
        raise InvalidRequest(f"the signature's {side} are {_names(given)}, the model's are {_names(found)}")
    for spec in given if by_name else ():
        other = by_name[spec.name]
        if other.datatype != spec.datatype or not fits(other.shape, spec.shape):
            raise InvalidRequest(
                f"the signature's {side}: {spec.name!r} is {spec.datatype} {list(spec.shape)}, "
                f"the model's is {other.datatype} {list(other.shape)}"
            )
    return given


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(repr(spec.name) for spec in specs)
