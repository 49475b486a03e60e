"""Is the server ready for requests? One answer for REST, gRPC and the drain."""

from __future__ import annotations

from collections.abc import Callable


class Health:
    """`ready` goes up when every wanted version has settled, and down for good when the server drains."""

    def __init__(self) -> None:
        self.ready = False
        self._listeners: list[Callable[[bool], None]] = []

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Call `listener` with each new value."""
        self._listeners.append(listener)

    def set(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            for listener in self._listeners:
                listener(ready)
