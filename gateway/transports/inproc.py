"""A worker in this process: a batch is handed over as it is, nothing is copied or encoded."""

from __future__ import annotations

from collections.abc import Callable

from gateway.transports.base import Done, Sample
from workers.messages import Batch, Cancel
from workers.worker import Worker


class InProcess:
    """`patience`: seconds that `close` waits for what is in flight. The worker itself stays its host's to close."""

    replicas = gateways = 1

    def __init__(self, worker: Worker, window: int, patience: float = 20.0) -> None:
        self.window = window
        self._worker = worker
        self._patience = patience
        self.send: Callable[[Batch, Done], None] = worker.submit
        self.cancel: Callable[[Cancel], None] = worker.cancel

    @property
    def samples(self) -> list[Sample]:
        return [Sample(rows, seconds) for rows, seconds in self._worker.samples]

    async def close(self) -> None:
        self.window = 0
        await self._worker.finish(self._patience)
