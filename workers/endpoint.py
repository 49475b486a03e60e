"""What runs the batches of one model version, to whoever feeds it: a `Worker`, or a `ChildLink` to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from repository.records import Version
from workers.messages import Batch, Cancel, Reply
from workers.worker import Timed


class Endpoint(Protocol):
    @property
    def ready(self) -> bool:
        """Whether it takes batches now."""

    @property
    def version(self) -> Version:
        """With what the load has found out."""

    @property
    def samples(self) -> list[Timed]:
        """The warm-up runs."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called when `ready` changes."""

    def submit(self, batch: Batch, reply: Callable[[Reply], None]) -> None:
        """Queue a batch; `reply` is called with its answer once, later, on the event loop."""

    def cancel(self, cancel: Cancel) -> None:
        """Members have gone: they need not run."""
