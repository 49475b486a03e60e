"""An infer request over HTTP: its path, its headers, and how its answer is written.

The protocol (`gateway/http.py`) collects the body; `gateway/codec/rest.py` understands it.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import unquote_to_bytes

import orjson

from core.datatypes import Buffer
from core.errors import InvalidRequest, PenstockError, UnsupportedMedia
from core.identity import credential_from
from core.status import answer_to
from core.trace import Caller
from gateway.codec import rest
from gateway.exchange import Exchange, InferRequest, InferResponse, Pass
from gateway.fit import Mould

COMPRESS_FROM = 1024
"""Answers shorter than this many bytes are not worth compressing."""

COMPRESSIONS = frozenset({b"gzip", b"deflate"})
JSON = b"content-type: application/json\r\n"
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


class InferHead:
    """What an infer request's path and headers say; shared by all requests of a connection whose heads are equal."""

    __slots__ = (
        "accept",
        "allowed",
        "caller",
        "content_type",
        "credential",
        "encoding",
        "header_length",
        "model",
        "version",
    )

    def __init__(self, target: tuple[str, str], fields: dict[bytes, bytes]) -> None:
        self.model, self.version = target
        self.allowed = Pass()
        self.caller = Caller.of(fields.get(b"traceparent"), fields.get(b"tracestate"), fields.get(b"x-request-id"))
        self.credential = credential_from(fields.get(b"authorization"), fields.get(b"x-api-key"))
        self.content_type = fields.get(b"content-type", b"").lower()
        self.encoding = fields.get(b"content-encoding", b"")
        self.accept = fields.get(b"accept-encoding", b"")
        self.header_length = fields.get(b"inference-header-content-length")


class HttpExchange(Exchange):
    """An infer request on a connection."""

    __slots__ = ("body", "connection", "head")

    def __init__(self, connection: Connection, head: InferHead) -> None:
        super().__init__(head.model, head.version, head.credential, 0, head.caller)
        self.allowed = head.allowed
        self.connection = connection
        self.head = head
        self.body: Buffer = b""

    def decode(self, mould: Mould) -> InferRequest:
        head = self.head
        body = self.body
        if b"pickle" in head.content_type:
            raise UnsupportedMedia("pickles are not read: send JSON or binary tensor data")
        limits = self.connection.limits
        if head.encoding:
            body = rest.decompress(body, head.encoding.decode("latin-1"), limits.decoded_bytes)
        return rest.decode(body, _length(head.header_length), mould.signature, limits)

    def reply(self, response: InferResponse) -> None:
        parts, header_length = rest.render(response)
        if header_length is None:
            headers = JSON
        else:
            headers = (
                b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n" % header_length
            )
        accept = self.head.accept
        if accept in COMPRESSIONS and sum(map(len, parts)) >= COMPRESS_FROM:
            parts = [rest.compress(b"".join(parts), accept.decode())]
            headers += b"content-encoding: %b\r\n" % accept
        self.connection.answer(self, 200, headers + ids(self.trace_id, self.caller), parts)

    def fail(self, error: PenstockError) -> None:
        status, headers, body = render_error(error)
        self.connection.answer(self, status, headers + ids(self.trace_id, self.caller), [body])


def ids(trace_id: int, caller: Caller) -> bytes:
    """The header lines of every answer that name the request."""
    request_id, trace = caller.names(trace_id)
    return f"x-request-id: {request_id}\r\nx-trace-id: {trace}\r\n".encode()


def _length(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise InvalidRequest("Inference-Header-Content-Length must be a whole number of bytes")
    return int(text)


def render_error(error: PenstockError) -> tuple[int, bytes, bytes]:
    """An error → status, header lines, JSON body."""
    status, headers, content = answer_to(error)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return status, JSON + lines.encode("latin-1"), orjson.dumps(content)
