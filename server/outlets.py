"""stdout and stderr of a server: whoever reads them may close them, go, or stop reading, and the server goes on.

A write only puts its text aside; a thread hands it on, and it alone waits for the reader.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TextIO

import structlog

log = structlog.get_logger(__name__)

MOST = 1 << 20
"""Bytes that may wait for a reader."""
LAST_WORDS_S = 1.0
"""What a process that ends gives its readers to take the rest."""


class Outlet(io.TextIOBase):
    """A stream that never fails and never waits. Text beyond what may wait is dropped, write by write, and the lines
    of it are counted; the log tells how many as soon as the reader has taken the rest."""

    def __init__(self, descriptor: int, encoding: str, most: int = MOST) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._encoding = encoding
        self._most = most
        # what waits, the bytes of it and of what the thread has in hand, and the lines there was no room for
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._pour, name=f"outlet {descriptor}", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode(self._encoding, "backslashreplace")
        with self._changed:
            if self._bytes + len(data) <= self._most:
                self._waiting.append(data)
                self._bytes += len(data)
                self._changed.notify_all()
            else:
                self._dropped += max(1, text.count("\n"))
        return len(text)

    def flush(self) -> None:
        """Nothing: who logs does not wait for who reads. `drain` does."""

    def drain(self, within_s: float) -> None:
        """Wait until all of it is taken, or for `within_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, within_s)

    def _pour(self) -> None:
        """Hand on what waits, for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = b"".join(self._waiting)
                self._waiting.clear()
            self._hand_on(data)
            with self._changed:
                self._bytes -= len(data)
                dropped, self._dropped = self._dropped, 0
                self._changed.notify_all()
            if dropped:
                log.warning("nobody read what was written", descriptor=self._descriptor, lines_dropped=dropped)

    def _hand_on(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._written(rest) :]
        except OSError:
            self._give_up()

    def _written(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # somebody who shares the terminal or pipe has made it so
            select.select((), (self._descriptor,), ())
            return 0

    def _give_up(self) -> None:
        """Nobody will take it any more: from now on it goes nowhere."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)


def secure() -> None:
    """Put outlets in the place of this process's stdout and stderr. Descriptors 0 to 2 that are closed are taken, since
    the event loop's library breaks down where a socket gets such a number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    outlets = Outlet(1, _encoding(sys.stdout)), Outlet(2, _encoding(sys.stderr))
    sys.stdout, sys.stderr = outlets
    atexit.register(_drain, outlets)


def _encoding(stream: TextIO | None) -> str:
    """None: it was closed from the beginning."""
    return "utf-8" if stream is None else stream.encoding


def _drain(outlets: tuple[Outlet, ...]) -> None:
    end = time.monotonic() + LAST_WORDS_S
    for outlet in outlets:
        outlet.drain(max(0.0, end - time.monotonic()))
