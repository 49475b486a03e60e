"""The body of a push: a manifest, then the artifact, as multipart/form-data, never whole in memory.

The parser is fed chunk by chunk as they come; what it finds of the artifact is handed on before the next chunk is
read, so the sender is slowed to the speed of the disk. A sender slower than the minimum rate is cut off instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import cast

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from core.errors import InvalidRequest, SlowSender, TooLarge, UnsupportedMedia
from core.settings import MIB

OVERHEAD = MIB
"""Bytes that a push may have beyond its artifact and its manifest: the parts' headers."""
LEFTOVER, LEFTOVER_S = 8 * MIB, 2.0
"""Bytes and seconds of a refused upload that are still taken before its connection is closed."""
MANIFEST, ARTIFACT = "manifest", "artifact"


def boundary_of(content_type: str, content_encoding: str = "") -> bytes:
    """The multipart boundary. Raises UnsupportedMedia for any other media type, InvalidRequest where it is missing."""
    if content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMedia("a push is not compressed: send it without Content-Encoding")
    media, options = parse_options_header(content_type)
    if media != b"multipart/form-data":
        raise UnsupportedMedia("a push is multipart/form-data: a part 'manifest', then a part 'artifact'")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise InvalidRequest("Content-Type: multipart/form-data needs a boundary of 1 to 70 characters")
    return boundary


class Upload:
    """The parts of one push, in order: `await manifest()`, of up to `max_manifest` bytes, then
    `async for piece in artifact()`.
    """

    def __init__(self, chunks: AsyncIterator[bytes], boundary: bytes, max_manifest: int = MIB) -> None:
        self._chunks = chunks
        self._max_manifest = max_manifest
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._part = ""
        self._done: list[str] = []
        self._whole = False
        self._manifest = bytearray()
        self._pieces: list[bytes] = []

    async def manifest(self) -> bytes:
        """The text of the first part, which must be the manifest. Raises InvalidRequest, TooLarge."""
        while MANIFEST not in self._done:
            await self._feed()
        return bytes(self._manifest)

    async def artifact(self) -> AsyncIterator[bytes]:
        """The content of the second part; ends only when the whole body was well formed. Raises InvalidRequest."""
        while True:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            if self._whole:
                break
            await self._feed()
        if ARTIFACT not in self._done:
            raise InvalidRequest("the push has no part 'artifact'")

    async def _feed(self) -> None:
        if self._whole:
            raise InvalidRequest("the push has no part 'manifest'")
        chunk = await anext(self._chunks, None)
        if chunk is None:
            raise InvalidRequest(f"the push ends {f'inside its part {self._part!r}' if self._part else 'too early'}")
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise InvalidRequest("the push is no well-formed multipart/form-data") from None

    # What the parser finds, in the order in which it finds it.

    def _on_part(self) -> None:
        if self._whole or len(self._done) > 1:
            raise InvalidRequest("a push has two parts: 'manifest', then 'artifact'")
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        name.clear()
        value.clear()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        due = (MANIFEST, ARTIFACT)[len(self._done)]
        if name != due:
            raise InvalidRequest(f"a push has two parts, 'manifest', then 'artifact': {name[:64]!r} came as {due!r}")
        self._part = name

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == ARTIFACT:
            self._pieces.append(data[start:end])
            return
        if len(self._manifest) + end - start > self._max_manifest:
            raise TooLarge(f"the manifest exceeds {self._max_manifest} bytes")
        self._manifest += data[start:end]

    def _on_part_end(self) -> None:
        self._done.append(self._part)
        self._part = ""

    def _on_end(self) -> None:
        self._whole = True


class Pace:
    """Whether a sender keeps up: at least `rate` bytes a second over each `window` seconds of waiting for it. Pure.

    Only waiting counts: a slow disk of ours is not held against the sender.
    """

    def __init__(self, rate: int, window: float) -> None:
        self.left = window
        self._rate = rate
        self._window = window
        self._got = 0

    def step(self, size: int, waited: float) -> None:
        """`size` bytes came after `waited` seconds. Raises SlowSender when a window ends with too few."""
        self._got += size
        self.left -= waited
        if self.left > 0:
            return
        if self._got < self._rate * self._window:
            raise SlowSender(f"the upload is too slow: at least {self._rate} bytes a second are needed")
        self._got = 0
        self.left = self._window


class Sender:
    """The other end of a push, held to `rate` bytes a second over each `window` seconds. `more`: its body has not come
    to its end yet.
    """

    def __init__(self, receive: Receive, rate: int, window: float = 15.0) -> None:
        self.more = True
        self._receive = receive
        self._pace = Pace(rate, window)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, none of it waited for longer than the rate allows.

        Raises SlowSender, and ClientDisconnect when the client leaves.
        """
        clock = asyncio.get_running_loop().time
        while self.more:
            before = clock()
            chunk = b""
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.left):
                    chunk = await self._next()
            if self.more:
                self._pace.step(len(chunk), clock() - before)
            if chunk:
                yield chunk

    async def drain(self) -> None:
        """After a refusal: take what a short upload still brings, so that its sender gets to read the answer."""
        left = LEFTOVER
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(LEFTOVER_S):
                while self.more and left > 0:
                    left -= len(await self._next())

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.more = message.get("more_body", False)
        return cast(bytes, message.get("body", b""))


def check_length(headers: Mapping[str, str], limit: int, max_manifest: int = MIB) -> None:
    """Raise TooLarge where the Content-Length alone says that the artifact is beyond `limit` bytes."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:19]) > limit + max_manifest + OVERHEAD:
        raise TooLarge(f"the artifact exceeds {limit} bytes")
