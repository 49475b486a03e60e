"""Receives a large body where it will stay: the kernel writes into the tensor's own buffer.

While the body of an infer request arrives, a `BodyReader` stands in for its connection's protocol. Nothing parses
these bytes, since the head has told how many they are: no chunk of them is ever copied or joined. The buffer is as
large as the head says, which the body limit bounds; its pages are only touched as the bytes come.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np

from core.datatypes import Buffer

DIRECT_FROM = 1 << 16
"""Bytes still to come from which this is worth the change of protocols."""


class Receiver(Protocol):
    """The connection's protocol, as the reader needs it."""

    transport: asyncio.Transport

    def body_received(self, body: memoryview) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def eof_received(self) -> bool | None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class BodyReader(asyncio.BufferedProtocol):
    """Fills a body of `length` bytes, of which `begun` are here, then hands it to `receiver` and steps back."""

    def __init__(self, receiver: Receiver, begun: Buffer, length: int) -> None:
        self._receiver = receiver
        self._body = np.empty(length, np.uint8).data  # a bytearray would be zeroed, and so all its pages touched
        self._body[: len(begun)] = begun
        self._at = len(begun)
        self.connection_lost = receiver.connection_lost  # type: ignore[method-assign]
        self.eof_received = receiver.eof_received  # type: ignore[method-assign]
        self.pause_writing = receiver.pause_writing  # type: ignore[method-assign]
        self.resume_writing = receiver.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._body[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._at += nbytes
        if self._at == len(self._body):
            self._receiver.body_received(self._body)


def listen(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Let `protocol` take what `transport` reads from now on: how it is read is settled when reading starts."""
    if transport.is_closing():
        return
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()
