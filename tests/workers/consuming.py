"""A replica in a process of its own, to be killed: `python -m tests.workers.consuming URL FILE S`; SIGTERM drains it.

Its model doubles, but ends the process at a row of ALWAYS, takes as long over a row of SLOW as FILE is there, and never
ends with a row of HANGS: it is ended then, with a patience of S seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from core.topology import new_instance
from repository.records import Signature, TensorSpec, Version
from workers.consumer import Consumer
from workers.execution import Runner
from workers.merge import Arrays
from workers.messages import Scalar
from workers.watchdog import watch
from workers.worker import Timed, Worker

ALWAYS, SLOW, HANGS = 666, 555, 777
MADE = Version(
    model="m",
    version=1,
    owner="tests",
    format="onnx",
    digest="0" * 64,
    size=1,
    signature=Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),)),
    max_batch=32,
    default_deadline_ms=1000,
    queue_bound=10,
    created=0.0,
)
"""As `tests.workers.samples.version()`, without what that imports: a process is started many times."""


class Deadly:
    def __init__(self, held: Path) -> None:
        self.signature = Signature((), ())
        self._held = held

    def run(self, inputs: Arrays, parameters: dict[str, Scalar]) -> Arrays:
        values = inputs["x"][:, 0].tolist()
        if ALWAYS in values:
            os.kill(os.getpid(), signal.SIGKILL)
        if SLOW in values:
            while self._held.exists():
                os.sched_yield()
        while HANGS in values:
            time.sleep(1)
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        """Nothing to free."""


async def main(url: str, held: str, patience_s: str) -> None:
    loop = asyncio.get_running_loop()
    worker = Worker(Runner(MADE, Deadly(Path(held))), [Timed(1, 0.001)], loop.call_soon_threadsafe)
    worker.start()
    consumer = Consumer(url, new_instance("replica"), MADE)
    consumer.serve(worker)
    watching = asyncio.create_task(watch(worker, float(patience_s), consumer.blame, os._exit))
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(consumer.drain(20.0)))
    await consumer.run()
    watching.cancel()
    await worker.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
