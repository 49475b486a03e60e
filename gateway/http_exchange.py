"""An infer request over HTTP: its path, its headers, and how its answer is written.

The protocol (`gateway/http.py`) collects the body; `gateway/codec/rest.py` understands it.
"""

from __future__ import annotations

import math
from typing import Protocol
from urllib.parse import unquote_to_bytes

import orjson

from core.datatypes import Buffer
from core.errors import InvalidRequest, PenstockError, UnsupportedMedia
from core.identity import credential_from
from core.status import status_of
from gateway.codec import rest
from gateway.exchange import Exchange, InferRequest, InferResponse
from repository.records import Signature

COMPRESS_FROM = 1024
"""Answers shorter than this many bytes are not worth compressing."""

_INFER_PREFIX = b"/v2/models/"
_INFER_SUFFIX = b"/infer"


def infer_target(path: bytes) -> tuple[str, str] | None:
    """`/v2/models/{m}[/versions/{v}]/infer` → (model, version or ''); None for any other path.

    Segments are percent-decoded one by one, so an encoded slash stays inside its name, where no name may have it.
    """
    if not (path.startswith(_INFER_PREFIX) and path.endswith(_INFER_SUFFIX)):
        return None
    parts = path[len(_INFER_PREFIX) : -len(_INFER_SUFFIX)].split(b"/")
    if len(parts) == 1 and parts[0]:
        return _text(parts[0]), ""
    if len(parts) == 3 and parts[1] == b"versions" and parts[2]:
        return _text(parts[0]), _text(parts[2])
    return None


def _text(segment: bytes) -> str:
    return (unquote_to_bytes(segment) if b"%" in segment else segment).decode("utf-8", "replace")


class Connection(Protocol):
    """What an exchange needs of the connection it came on."""

    limits: rest.Limits

    def answer(self, exchange: HttpExchange, status: int, headers: bytes, parts: list[Buffer]) -> None: ...


class HttpExchange(Exchange):
    """An infer request on a connection."""

    __slots__ = ("accept", "body", "connection", "content_type", "encoding", "header_length")

    def __init__(self, connection: Connection, model: str, version: str, headers: list[tuple[bytes, bytes]]) -> None:
        authorization = api_key = None
        self.encoding = self.accept = self.content_type = b""
        self.header_length: bytes | None = None
        for name, value in headers:
            if name == b"authorization":
                authorization = value
            elif name == b"x-api-key":
                api_key = value
            elif name == b"content-type":
                self.content_type = value
            elif name == b"content-encoding":
                self.encoding = value
            elif name == b"accept-encoding":
                self.accept = value
            elif name == b"inference-header-content-length":
                self.header_length = value
        super().__init__(model, version, credential_from(authorization, api_key))
        self.connection = connection
        self.body: bytes | bytearray = b""

    def decode(self, signature: Signature) -> InferRequest:
        if b"pickle" in self.content_type.lower():
            raise UnsupportedMedia("pickles are not read: send JSON or binary tensor data")
        limits = self.connection.limits
        body = self.body
        if self.encoding:
            body = rest.decompress(body, self.encoding.decode("latin-1"), limits.decoded_bytes)
        return rest.decode(body, self._header_length(), signature, limits)

    def _header_length(self) -> int | None:
        text = self.header_length
        if text is None:
            return None
        if not text.isdigit() or len(text) > 18:
            raise InvalidRequest("Inference-Header-Content-Length must be a whole number of bytes")
        return int(text)

    def reply(self, response: InferResponse) -> None:
        parts, header_length = rest.render(response)
        if header_length is None:
            headers = b"content-type: application/json\r\n"
        else:
            headers = (
                b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n" % header_length
            )
        if self.accept in (b"gzip", b"deflate") and sum(map(len, parts)) >= COMPRESS_FROM:
            parts = [rest.compress(b"".join(parts), self.accept.decode())]
            headers += b"content-encoding: %b\r\n" % self.accept
        self.connection.answer(self, 200, headers, parts)

    def fail(self, error: PenstockError) -> None:
        status, headers, body = render_error(error)
        self.connection.answer(self, status, headers, [body])


def render_error(error: PenstockError) -> tuple[int, bytes, bytes]:
    """An error → status, header lines, JSON body."""
    status = status_of(error).http
    content: dict[str, str] = {"error": error.message}
    if error.error_id:
        content["error_id"] = error.error_id
    headers = b"content-type: application/json\r\n"
    if error.retry_after is not None:
        headers += b"retry-after: %d\r\n" % max(1, math.ceil(error.retry_after))
    if status == 401:
        headers += b"www-authenticate: Bearer\r\n"
    return status, headers, orjson.dumps(content)
