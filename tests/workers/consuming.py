"""A replica in a process of its own, to be killed: `python -m tests.workers.consuming URL`; SIGTERM drains it.

Its model doubles, but ends the process at a row of ALWAYS, and takes as long over a row of SLOW as the file is there
that its second argument names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from core.topology import new_instance
from repository.records import Signature
from tests.workers.samples import version
from workers.consumer import Consumer
from workers.execution import Runner
from workers.merge import Arrays
from workers.messages import Scalar
from workers.worker import Timed, Worker

ALWAYS, SLOW = 666, 555


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
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        """Nothing to free."""


async def main(url: str, held: str) -> None:
    made, loop = version(), asyncio.get_running_loop()
    worker = Worker(Runner(made, Deadly(Path(held))), [Timed(1, 0.001)], loop.call_soon_threadsafe)
    worker.start()
    consumer = Consumer(url, new_instance("replica"), made)
    consumer.serve(worker)
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(consumer.drain(20.0)))
    await consumer.run()
    await worker.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
