"""How batches reach whatever runs a model version, and how answers come back.

A family: `inproc.py` (a worker in this process), `process.py` (a Unix socket to a child process), `amqp.py` (RabbitMQ),
`fake.py` (scripted; for tests and benchmarks). One suite holds them all: `tests/gateway/transports/test_transports.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from core.errors import NotReady
from workers.messages import Batch, Cancel, Reply, failure_of

Done = Callable[[Reply], None]
"""Called exactly once for each batch, on the event loop's thread, never from inside `send`. A batch that was lost
comes back as a Reply whose results are all Failures of reason `worker_lost`."""


UNSERVED = failure_of(NotReady("the model version is not being served"))
"""This very object is the result of members that nobody began with, and nobody will: no worker serves the version any
more. Another version may."""


class Sample(NamedTuple):
    """One timed execution: how many rows, and seconds from send to reply (warm-up) or of compute."""

    rows: int
    seconds: float


class Transport(Protocol):
    """The way to the workers of one model version."""

    @property
    def window(self) -> int:
        """Batches that may usefully be in flight now; 0 while no worker can take any."""

    @property
    def replicas(self) -> int:
        """Workers that share what is sent here, by all gateways; 0 while none is heard."""

    @property
    def gateways(self) -> int:
        """Those that send to these workers, this one among them."""

    @property
    def samples(self) -> list[Sample]:
        """Service times measured by the warm-up, to seed the estimates."""

    def send(self, batch: Batch, done: Done) -> None:
        """Hand a batch over. Never blocks, never raises for a lost worker: that is a Reply too."""

    def cancel(self, cancel: Cancel) -> None:
        """Say that members have gone. A hint: their results may still come back."""

    async def close(self) -> None:
        """Wait for what is in flight, then let go. Batches still unanswered come back as `worker_lost`."""
