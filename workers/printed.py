"""What a child prints, line by line into the log: long lines cut, and a limit on how many come in a second."""

from __future__ import annotations

import asyncio
from typing import cast

import structlog

log = structlog.get_logger(__name__)

MAX_LINE = 8000
"""Bytes; the rest of a longer line is dropped."""
BURST = 200
"""Lines within one second; then the pipe is left unread until the second is over, so that the child waits."""


class Printed(asyncio.Protocol):
    def __init__(self, model: str) -> None:
        self._model = model
        self._line = bytearray()
        self._left = BURST
        self._transport: asyncio.ReadTransport | None = None
        self.over = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines[: self._left]:
            self._line += line[: MAX_LINE - len(self._line)]
            self._emit()
        if len(lines) > self._left:
            log.warning("child prints too much", model=self._model, lines_dropped=len(lines) - self._left)
        self._left -= len(lines)
        self._line += rest[: max(0, MAX_LINE - len(self._line))]
        if self._left <= 0:
            self._pause()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._line:
            self._emit()
        self.over.set()

    def _emit(self) -> None:
        text = self._line.decode("utf-8", "backslashreplace").rstrip()
        self._line.clear()
        if text:
            log.info("child", model=self._model, line=text)

    def _pause(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()
            asyncio.get_running_loop().call_later(1.0, self._resume)

    def _resume(self) -> None:
        self._left = BURST
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
