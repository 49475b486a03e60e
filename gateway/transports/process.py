"""A child process of this one: batches go to it as they are, over the link that its host keeps."""

from __future__ import annotations

from collections.abc import Callable

from gateway.transports.base import Done, Sample
from workers.child import Child
from workers.child_link import ChildLink
from workers.messages import Batch, Cancel


class Process:
    """`patience`: seconds before which a silent child never counts as hung; `drain`: seconds that `close` waits."""

    replicas = gateways = 1

    def __init__(self, child: Child, window: int, patience: float = 10.0, drain: float = 20.0) -> None:
        self._link = ChildLink(child, patience)
        self._window = window
        self._drain = drain
        self.send: Callable[[Batch, Done], None] = self._link.submit
        self.cancel: Callable[[Cancel], None] = self._link.cancel

    @property
    def window(self) -> int:
        return self._window if self._link.ready else 0

    @property
    def samples(self) -> list[Sample]:
        return [Sample(rows, seconds) for rows, seconds in self._link.samples]

    async def close(self) -> None:
        self._window = 0
        await self._link.finish(self._drain)
