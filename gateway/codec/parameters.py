"""The parameters of requests and outputs: which are reserved, what they may be, where they go. Pure.

T:docs/protocol/extension_{parameters,schedule_policy,classification,model_repository}.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core.errors import InvalidRequest, Unsupported
from gateway.exchange import InferRequest
from workers.messages import Scalar

PRIORITY, TIMEOUT, BINARY_OUTPUT = "priority", "timeout", "binary_data_output"
SEQUENCE = frozenset({"sequence_id", "sequence_start", "sequence_end"})
SHARED_MEMORY = "shared_memory"
"""How the parameters begin that say where in the caller's memory a tensor lies."""
MAX_PRIORITY = 255
SMALLEST, LARGEST = -(1 << 63), (1 << 64) - 1

Parameters = Mapping[str, Scalar]


def apply(request: InferRequest, parameters: Parameters) -> None:
    """Put reserved parameters where they belong, and the caller's own into `request.parameters`.

    Raises InvalidRequest for a reserved one of a wrong type and for integers of more than 64 bits, Unsupported for the
    sequence extension's.
    """
    own: dict[str, Scalar] = {}
    for name, value in parameters.items():
        if name == PRIORITY:
            request.priority = priority(value)
        elif name == TIMEOUT:
            request.timeout_us = timeout_us(value)
        elif name == BINARY_OUTPUT:
            request.binary_output = flag(value, name)
        elif name in SEQUENCE:
            if value:
                raise Unsupported(f"the parameter {name!r} belongs to the sequence extension, which is not offered")
        elif name == "headers" or name.startswith("triton_"):
            continue
        else:
            own[name] = _fitting(name, value)
    request.parameters = own


def _fitting(name: str, value: Scalar) -> Scalar:
    """JSON's integers have no end; those on their way to a model have."""
    if type(value) is int and not SMALLEST <= value <= LARGEST:
        raise InvalidRequest(f"the parameter {name[:64]!r} is an integer of more than 64 bits")
    return value


def flag(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise InvalidRequest(f"the parameter {name!r} must be true or false")
    return value


def priority(value: object) -> int:
    """The `priority` parameter: 0 (the default class) to 255; 1 is served first."""
    if type(value) is not int or not 0 <= value <= MAX_PRIORITY:
        raise InvalidRequest(f"the parameter 'priority' must be an integer from 0 to {MAX_PRIORITY}")
    return value


def timeout_us(value: object) -> int:
    """The `timeout` parameter, in microseconds; 0 = the model's default."""
    if type(value) is not int or value < 0:
        raise InvalidRequest("the parameter 'timeout' must be an integer of microseconds, at least 0")
    return value


def top_k(value: object, tensor: str) -> int:
    """The `classification` parameter of an output."""
    if type(value) is not int or value < 1:
        raise InvalidRequest(f"output {tensor!r}: the parameter 'classification' must be an integer of at least 1")
    return value


def check_load(names: Iterable[str]) -> None:
    """Raise InvalidRequest for a parameter of the repository's load that only a push can meet."""
    for name in names:
        if name == "config" or name.startswith("file:"):
            raise InvalidRequest(
                f"the load parameter {name[:64]!r} is not taken: a version is immutable; "
                "make a new one with `penstock push`"
            )
