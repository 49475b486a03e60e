"""Whether a reply from an untrusted process is one that its batch and its model's signature allow. Pure."""

from __future__ import annotations

import math

from core.datatypes import DATATYPES, Buffer, decode_bytes
from core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    ModelFailed,
    PenstockError,
    TooLarge,
    Unavailable,
    WorkerLost,
)
from repository.records import TensorSpec, Version
from workers.messages import Batch, Failure, Output, Reply, Timing

Form = tuple[int, str, str, tuple[int, ...], int, int]
"""Which output it is, name, datatype, shape, bytes, rows of its member."""
REMEMBERED = 4096
"""Forms of outputs known to be right: looked up in place of being checked again."""
MILLISECOND = 1_000_000

GIVEN = frozenset(
    error.reason
    for error in (InvalidRequest, TooLarge, ModelFailed, Internal, Unavailable, WorkerLost, DeadlineExceeded)
)
"""Reasons that a worker has. All others are for the gateway to give: by them a caller thinks it is unknown, or slow."""


class Conformity:
    def __init__(self, version: Version) -> None:
        self._specs = version.signature.outputs
        self._known: set[Form] = set()

    def check(self, batch: Batch, reply: Reply) -> None:
        """Raise ValueError unless there is one result a member, each a failure or all outputs as the signature says."""
        if len(reply.results) != len(batch.members):
            raise ValueError(f"{len(reply.results)} results for {len(batch.members)} members")
        specs, known, batched = self._specs, self._known, batch.batched
        for member, result in zip(batch.members, reply.results, strict=True):
            if isinstance(result, Failure):
                _check_failure(result)
                continue
            if len(result) != len(specs):
                raise ValueError(f"{len(result)} outputs where the signature has {len(specs)}")
            rows = member.rows if batched else -1
            for at, output in enumerate(result):
                form = (at, output.name, output.datatype, output.shape, len(output.data), rows)
                if form not in known:
                    self._check(specs[at], output, rows, form)

    def _check(self, spec: TensorSpec, output: Output, rows: int, form: Form) -> None:
        if output.name != spec.name or output.datatype != spec.datatype or not _fits(spec.shape, output.shape, rows):
            raise ValueError(f"the output {spec.name!r} is not what the signature says")
        if not DATATYPES[spec.datatype].size:
            _check_elements(output.data, math.prod(output.shape))
            return
        if len(output.data) != math.prod(output.shape) * DATATYPES[spec.datatype].size:
            raise ValueError(f"the output {spec.name!r} does not fill its shape")
        if len(self._known) < REMEMBERED:
            self._known.add(form)


def check_times(timing: Timing, elapsed: int) -> None:
    """Raise ValueError for times, in nanoseconds, that cannot have passed since the batch was sent, and wild counts."""
    times = (timing.queue, timing.compute_input, timing.compute_infer, timing.compute_output)
    if min(times) < 0 or sum(times) > elapsed + elapsed // 100 + MILLISECOND:
        raise ValueError("a reply's times do not add up")
    if not 0 <= timing.executed_rows < 1 << 31 or not 1 <= timing.executed_batches < 1 << 31:
        raise ValueError("a reply's counts cannot be")


def _check_failure(failure: Failure) -> None:
    if failure.reason not in GIVEN:
        raise ValueError(f"no worker gives the reason {failure.reason[:32]!r}, as for {failure.message[:120]!r}")
    error_id = failure.error_id
    if error_id and not (len(error_id) <= 64 and error_id.isascii() and error_id.isalnum()):
        raise ValueError(f"{error_id[:64]!r} is no error id")


def _fits(declared: tuple[int, ...], shape: tuple[int, ...], rows: int) -> bool:
    if len(declared) != len(shape) or any(size < 0 for size in shape):
        return False
    return all(d in (-1, s) for d, s in zip(declared, shape, strict=True)) and rows in (-1, shape[0])


def _check_elements(data: Buffer, count: int) -> None:
    try:
        decode_bytes(data, count)
    except PenstockError as error:
        raise ValueError(error.message) from None
