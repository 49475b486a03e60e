"""What batching costs a request: submit → dispatch → answer, over a transport that answers at once.

    .venv/bin/python -m benchmarks.micro_batching [--json FILE]

For batches of 1 to 128: CPU nanoseconds a request, the median of rounds. `hop` is an iteration of the loop that does
nothing: what putting the dispatch off to the end of an iteration adds. A batch of one goes through three of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from typing import Any

from core.errors import PenstockError
from core.settings import Settings
from gateway.batching.batcher import BatchDone, Batcher
from gateway.batching.entry import BatchKey, ColumnKey, Entry
from gateway.transports.base import Done, Sample
from repository.records import Signature, Version
from workers.messages import Batch, Cancel, Output, Reply, Timing

KEY = BatchKey((ColumnKey("x", "FP32", (4,)),))
OUTPUTS = [Output("y", "FP32", (1, 4), bytes(16))]
TIMING = Timing(queue=10_000, compute_infer=100_000)
PIECE = bytes(16)
ROUNDS, REQUESTS = 9, 8192
SECOND = 1_000_000_000


class Request(Entry):
    answered = 0

    def answer(self, outputs: list[Output], timing: Timing, waited: int) -> None:
        Request.answered += 1

    def refuse(self, error: PenstockError) -> None:
        raise error


class Prompt:
    """A transport whose worker takes no time: it answers in the loop's next iteration."""

    replicas = gateways = 1
    window = 2

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.samples = [Sample(1 << k, 0.0001) for k in range(8)]

    def send(self, batch: Batch, done: Done) -> None:
        self._loop.call_soon(done, Reply(batch.id, [OUTPUTS] * len(batch.members), TIMING))

    def cancel(self, cancel: Cancel) -> None:
        return None

    async def close(self) -> None:
        return None


def version(max_batch: int) -> Version:
    return Version(
        model="m", version=1, owner="o", format="onnx", digest="", size=0, signature=Signature((), ()),
        max_batch=max_batch, default_deadline_ms=30_000, queue_bound=4096, created=0.0,
    )  # fmt: skip


def request(tenant: str) -> Request:
    now = time.monotonic_ns()
    return Request(KEY, 1, [PIECE], now, now + 30 * SECOND, tenant)


def done(_: BatchDone) -> None:
    return None


async def a_round(size: int, tenants: int) -> float:
    """Nanoseconds a request when `size` arrive in each iteration of the loop."""
    batcher = Batcher(version(size), Prompt(asyncio.get_running_loop()), Settings(), done)
    waves = [[request(f"t{i % tenants}") for i in range(size)] for _ in range(REQUESTS // size)]
    Request.answered = 0
    begun = time.process_time_ns()
    expected = 0
    for wave in waves:
        for entry in wave:
            batcher.submit(entry)
        expected += size
        while Request.answered < expected:
            await asyncio.sleep(0)
    return (time.process_time_ns() - begun) / REQUESTS


async def an_idle_loop() -> float:
    """Nanoseconds an iteration of the loop costs by itself."""
    begun = time.process_time_ns()
    for _ in range(REQUESTS):
        await asyncio.sleep(0)
    return (time.process_time_ns() - begun) / REQUESTS


def measure() -> dict[str, Any]:
    rows = [
        {
            "batch": size,
            "tenants": tenants,
            "ns_per_request": round(statistics.median(asyncio.run(a_round(size, tenants)) for _ in range(ROUNDS))),
        }
        for tenants in (1, 4)
        for size in (1, 8, 32, 128)
    ]
    hop = round(statistics.median(asyncio.run(an_idle_loop()) for _ in range(ROUNDS)))
    machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    return {"machine": machine, "hop_ns": hop, "batching": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write there in place of standard output")
    where = parser.parse_args().json
    text = json.dumps(measure(), indent=1)
    if where is None:
        sys.stdout.write(text + "\n")
    else:
        with open(where, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
