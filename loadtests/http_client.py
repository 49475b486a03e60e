"""A raw HTTP/1.1 client: bytes out, status out of the bytes in. As little of its own cost as Python allows."""

from __future__ import annotations

import asyncio
import re
from typing import cast
from urllib.parse import urlsplit

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One keep-alive connection that carries one request at a time. A broken one answers with status 0."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._lost = asyncio.Event()

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def call(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send; the future gives status and whole answer."""
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            answer.set_result((0, b""))
        else:
            self._answer = answer
            self._transport.write(request)
        return answer

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = LENGTH.search(self._buffer, 0, head_end)
        if len(self._buffer) >= head_end + 4 + (int(length[1]) if length else 0):
            whole, self._buffer = self._buffer, b""
            self._settle(int(whole[9:12]), whole)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._lost.set()
        self._settle(0, b"")

    def _settle(self, status: int, whole: bytes) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, whole))


def http_request(url: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, str, int]:
    """The bytes of a POST, and host and port that they go to."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body, parts.hostname, parts.port
