"""Artifact → a model that is ready: loaded, its signature settled, warmed. The same in-process and in a child."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from core.errors import InvalidRequest, PenstockError, new_error_id
from repository.records import Version
from repository.signature import warmup_sizes
from workers.described import described
from workers.example import as_batch, made_up, read_example, repeated
from workers.execution import Runner, Stages
from workers.merge import Arrays
from workers.probe import hint_of, settle
from workers.runtimes.base import load
from workers.signatures import WrongOutput
from workers.worker import Timed

log = structlog.get_logger(__name__)


class Prepared(NamedTuple):
    """`runner.version` is the version with what was found out; `note`: what the pusher should know, '' if nothing."""

    runner: Runner
    samples: list[Timed]
    note: str


def prepare(
    version: Version,
    path: Path,
    example: bytes | None,
    threads: int,
    default_max_batch: int,
    isolated: bool,
    device: str = "cpu",
) -> Prepared:
    """Load, settle, warm. Blocks for seconds. Raises InvalidRequest that says why the version cannot be served."""
    inputs = read_example(example) if example is not None else None
    model = load(path, version, hint_of(version.signature, inputs), threads, isolated, device)
    try:
        found = settle(version, model, inputs, default_max_batch)
        complete = msgspec.structs.replace(version, signature=found.signature, max_batch=found.max_batch)
        runner = Runner(complete, model)
        samples, note = warm_up(runner, inputs)
    except BaseException:
        model.close()
        raise
    return Prepared(runner, samples, "; ".join(filter(None, (found.note, note))))


def warm_up(runner: Runner, example: Arrays | None) -> tuple[list[Timed], str]:
    """Run each batch size twice, timing the second run; outputs are checked against the signature.

    With an example every failure is a refusal (InvalidRequest): the model fails on what its owner gave. Without one
    the inputs are made up (zeros, b""): a model may rightly refuse those, so its exception is only noted, and the
    version is served with the samples it got; outputs that contradict the signature are a refusal either way.
    """
    samples: list[Timed] = []
    version = runner.version
    data = example if example is not None else made_up(version.signature.inputs)
    for rows in warmup_sizes(version.max_batch, version.warmup):
        try:
            samples.append(_timed(runner, data, rows))
        except WrongOutput as error:
            raise InvalidRequest(error.message) from error
        except BaseException as error:
            what = _why(version, rows, error)
            if example is not None:
                raise InvalidRequest(f"the model failed on its example, at {rows} rows: {what}") from error
            given = ", ".join(f"{name} {list(array.shape)}" for name, array in _sized(version, data, rows).items())
            return samples, f"warming it with made-up inputs, {given}, failed ({what}): push it with an example"
    return samples, ""


def _why(version: Version, rows: int, error: BaseException) -> str:
    """What the pusher is told; the rest goes to the log under an id."""
    if isinstance(error, PenstockError):
        log.warning("warm-up refused", model=version.key, rows=rows, reason=error.message)
        return error.message
    error_id = new_error_id()
    log.warning("warm-up failed", model=version.key, rows=rows, error_id=error_id, exc_info=error)
    return f"{described(error)}; error id {error_id}"


def _sized(version: Version, data: Arrays, rows: int) -> Arrays:
    """The data of one run: so many rows of it where the version batches, else as it is."""
    return repeated(data, rows) if version.max_batch > 0 else data


def _timed(runner: Runner, data: Arrays, rows: int) -> Timed:
    version = runner.version
    batch = as_batch(version.signature.inputs, _sized(version, data, rows), version.max_batch > 0)
    runner.execute(batch, Stages())
    begun = time.perf_counter()
    runner.execute(batch, Stages())
    return Timed(rows, time.perf_counter() - begun)
