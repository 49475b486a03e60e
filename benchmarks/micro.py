"""What the pure parts of a request's way cost by themselves: codecs, policy, merge and split, frames.

python -m benchmarks.micro   prints microseconds for each request

One process, no sockets: the least of several rounds, which is what the code costs when nobody disturbs it.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import micro_batching, models
from benchmarks.rows import Plan, Row
from gateway.batching.entry import Entry
from gateway.batching.estimate import Estimate
from gateway.batching.policy import Policy
from gateway.codec import protobuf, rest
from gateway.exchange import InferRequest, InferResponse
from gateway.transports.base import Sample
from repository.records import Signature, TensorSpec
from workers import merge, messages
from workers.messages import Batch, Column, Member, Output, Reply, Timing

ROUND_S = 0.05
LIMITS = rest.Limits(decoded_bytes=1 << 27, tensors=256)
SMALL = np.arange(4, dtype=np.float32).reshape(1, 4)
LONG = np.random.default_rng(0).random((1, 1024), np.float32)
IMAGE = np.ones((1, 3, 224, 224), np.float32)
SECOND = 1_000_000_000


class Case(NamedTuple):
    """`requests`: how many one call of `run` is for."""

    name: str
    run: Callable[[], object]
    requests: int = 1


def codecs() -> Iterator[Case]:
    for name, x in (("4 numbers", SMALL), ("1024 numbers", LONG)):
        yield Case(f"REST JSON decode, {name}", _rest_decode(models.json_body(x), None, x))
        yield Case(f"REST JSON render, {name}", partial(rest.render, _response(x, binary=False)))
    for name, x in (("16 bytes", SMALL), ("an image", IMAGE)):
        body, headers = models.binary_body(x)
        yield Case(f"REST binary decode, {name}", _rest_decode(body, int(headers[models.BINARY_LENGTH]), x))
        yield Case(f"REST binary render, {name}", partial(rest.render, _response(x, binary=True)))
        yield Case(f"gRPC decode, {name}", partial(_grpc_decode, models.grpc_request("m", x)))
        yield Case(f"gRPC render, {name}", partial(protobuf.render, _response(x, binary=True)))


def _rest_decode(body: bytes, header_length: int | None, x: NDArray[np.float32]) -> Callable[[], object]:
    signature = Signature((TensorSpec("x", "FP32", (-1, *x.shape[1:])),), ())
    return partial(rest.decode, body, header_length, signature, LIMITS)


def _grpc_decode(message: bytes) -> InferRequest:
    return protobuf.decode(protobuf.parse(message, LIMITS.tensors), LIMITS.tensors)


def _response(x: NDArray[np.float32], binary: bool) -> InferResponse:
    return InferResponse("m", "1", [_output(x)], InferRequest([], binary_output=binary))


def _output(x: NDArray[np.float32]) -> Output:
    return Output("y", "FP32", x.shape, x.tobytes())


def batches() -> Iterator[Case]:
    specs = (TensorSpec("y", "FP32", (-1, 4)),)
    for size in (1, 32, 128):
        column = Column("x", "FP32", (4,), [SMALL.tobytes()] * size)
        batch = Batch(1, True, [Member(1)] * size, [column])
        answers = [np.repeat(SMALL, size, axis=0)]
        reply = Reply(1, [[_output(SMALL)]] * size, Timing())
        yield Case(f"merge, {size} requests", partial(merge.merge, batch), size)
        yield Case(f"split, {size} requests", partial(merge.split, specs, answers, batch.members, True), size)
        yield Case(f"frame of a batch, there and back, {size} requests", partial(_frame, batch), size)
        yield Case(f"frame of its reply, there and back, {size} requests", partial(_frame, reply), size)


def _frame(message: Batch | Reply) -> object:
    return messages.decode(b"".join(messages.encode(message))[4:])


def policies() -> Iterator[Case]:
    for size in (1, 32, 128):
        for tenants in (1, 4):
            name = f"policy: add, decide, finished, {size} requests of {tenants}"
            yield Case(name, partial(_gather, Policy(size, _estimate()), size, tenants), size)


def _estimate() -> Estimate:
    return Estimate(128, [Sample(1 << k, 0.001) for k in range(8)])


def _gather(policy: Policy, size: int, tenants: int) -> None:
    """One full batch: gathered, formed, answered, at a standing clock."""
    for number in range(size):
        entry = Entry(micro_batching.KEY, 1, [micro_batching.PIECE], 0, 30 * SECOND, f"t{number % tenants}")
        policy.add(entry)
    formed = policy.decide(0, 2).batch
    assert formed is not None
    assert formed.rows == size
    policy.finished(formed, 0, micro_batching.TIMING)


def micro(plan: Plan) -> list[Row]:
    rows = [_measured(case, plan.rounds) for cases in (codecs(), policies(), batches()) for case in cases]
    for told in micro_batching.measure()["batching"]:
        what = f"batcher: submit to answer, batches of {told['batch']}, {told['tenants']} tenants"
        rows.append(Row(part="micro", what=what, value=told["ns_per_request"] / 1e3, unit="µs a request"))
    return rows


def _measured(case: Case, rounds: int) -> Row:
    timer = timeit.Timer(case.run)
    calls = max(1, int(ROUND_S / (timer.timeit(3) / 3)))
    spent = [timer.timeit(calls) / calls / case.requests * 1e6 for _ in range(rounds)]
    return Row(part="micro", what=case.name, value=min(spent), unit="µs a request", rounds=spent)


if __name__ == "__main__":
    for row in micro(Plan()):
        print(f"{row.value:9.2f} {row.unit}  {row.what}")
