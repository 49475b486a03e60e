"""What every HTTP application of ours shares: who may come in, how much they may send, how errors look.

`Guard` stands in front of an ASGI application and asks for a credential on every path, known or not, but the public
ones, read by GET. It compares the decoded path exactly, so no spelling of a path is more public than another.
Behind it, `install_errors` gives every answer that is an error the one form `{"error": message}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import (
    Internal,
    InvalidRequest,
    PenstockError,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
    new_error_id,
)
from core.identity import Principal, Verifier, credential_from
from core.settings import MIB
from core.status import answer_to
from core.trace import Caller

log = structlog.get_logger(__name__)

ORDINARY_BODY = MIB
"""Bytes of a body that FastAPI reads whole into memory: they are small JSON documents. Routes that take more read
their body themselves, and say so by `allow_body`."""
ORDINARY_DEPTH = 32
LOGGED = "logged under error id "
"""Begins the note on an exception that stands in the log already: it passes more than one handler."""
TOLD = 5
"""Wrong places of a request that one answer names."""


# --- the guard ----------------------------------------------------------------------------------------------------


class Guard:
    """ASGI middleware: `scope["state"]["principal"]` is who asks, None where a `public` path is read (GET).

    `max_body` in bytes and `max_depth` in levels of JSON hold for every route that does not say otherwise. Refused
    with 415 are a media type of pickles, and a Content-Encoding but on the paths that `may_compress`.
    """

    def __init__(
        self,
        app: ASGIApp,
        verifier: Verifier,
        public: frozenset[str],
        max_body: int = ORDINARY_BODY,
        max_depth: int = ORDINARY_DEPTH,
        may_compress: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._public = public
        self._limit = max_body
        self._depth = max_depth
        self._may_compress = may_compress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        send = _naming(scope, send)
        try:
            principal = self._principal(scope)
            self._check_media(scope)
        except PenstockError as error:
            await _refuse(error, scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(_with_state(scope, principal=principal), receive, send)
            return
        body = Body(receive, scope, self._limit, self._depth)
        await _answered(self._app, _with_state(scope, principal=principal, body=body), body, send)

    def _principal(self, scope: Scope) -> Principal | None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in self._public:
            return None
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, value)
        return self._verifier.verify(credential_from(headers.get(b"authorization"), headers.get(b"x-api-key")))

    def _check_media(self, scope: Scope) -> None:
        if any(b"pickle" in value for value in _values(scope, b"content-type")):
            raise UnsupportedMedia("pickles are not read")
        encoded = any(value not in (b"", b"identity") for value in _values(scope, b"content-encoding"))
        if encoded and not self._may_compress(scope["path"]):
            raise UnsupportedMedia("this route takes no compressed body: send it without Content-Encoding")


def _naming(scope: Scope, send: Send) -> Send:
    """Every answer names its request (`x-request-id`) and the trace that this belongs to (`x-trace-id`)."""
    headers = dict(reversed(scope["headers"]))
    caller = Caller.of(headers.get(b"traceparent"), headers.get(b"tracestate"), headers.get(b"x-request-id"))
    request_id, trace_id = caller.names(caller.new_trace())
    named = {b"x-request-id": request_id.encode(), b"x-trace-id": trace_id.encode()}

    async def naming(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message.get("headers", ())}
            missing = [(name, value) for name, value in named.items() if name not in there]
            message = {**message, "headers": [*message.get("headers", ()), *missing]}
        await send(message)

    return naming


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value.strip().lower() for found, value in scope["headers"] if found == name]


def _with_state(scope: Scope, **members: object) -> Scope:
    return {**scope, "state": {**scope.get("state", {}), **members}}


async def _refuse(error: PenstockError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message})
    else:
        await error_response(error)(scope, receive, send)


async def _answered(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application; what escapes it is logged, and answered with a 500 unless an answer has begun."""
    started = False

    async def watched(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, watched)
    except ClientDisconnect:
        log.debug("client_left", path=scope["path"])
    except Exception as error:
        answer = _unexpected(error)
        if not started:
            await answer(scope, receive, send)


class Body:
    """A `receive` that counts. `limit` in bytes, `depth` in levels of JSON nesting.

    Raises TooLarge and InvalidRequest in the middle of the application's reading.
    """

    def __init__(self, receive: Receive, scope: Scope, limit: int, depth: int | None) -> None:
        self.limit = limit
        self._receive = receive
        self._declared = _declared(scope)
        self._received = 0
        self._nesting = None if depth is None else Nesting(depth)

    def allow(self, limit: int) -> None:
        """Let this request bring up to `limit` bytes, of anything. To be called before any is read."""
        self.limit = limit
        self._nesting = None

    async def __call__(self) -> Message:
        self._check(self._declared)
        message = await self._receive()
        piece = message.get("body", b"")
        self._received += len(piece)
        self._check(self._received)
        if self._nesting is not None:
            self._nesting.feed(piece)
        return message

    def _check(self, size: int) -> None:
        if size > self.limit:
            raise TooLarge(f"the body exceeds {self.limit} bytes")


def _declared(scope: Scope) -> int:
    """The Content-Length, 0 where there is none that can be read."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and len(value) < 19:
            return int(value)
    return 0


class Nesting:
    """Counts the levels of a JSON document as its bytes pass. Raises InvalidRequest beyond `limit`."""

    _TOKENS = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._depth = 0
        self._quoted = False
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        piece = self._rest + piece
        self._rest = b""
        end = 0
        for match in self._TOKENS.finditer(piece):
            end = match.end()
            self._token(match[0])
        if piece.endswith(b"\\") and end < len(piece):
            self._rest = b"\\"

    def _token(self, token: bytes) -> None:
        if token == b'"':
            self._quoted = not self._quoted
        elif self._quoted or len(token) > 1:
            return
        elif token in b"[{":
            self._depth += 1
            if self._depth > self._limit:
                raise InvalidRequest(f"the body is nested more than {self._limit} levels deep")
        else:
            self._depth -= 1


def allow_body(request: Request, limit: int) -> None:
    """For a route that reads its body itself: let this request bring up to `limit` bytes."""
    body = getattr(request.state, "body", None)
    if isinstance(body, Body):
        body.allow(limit)


# --- who asks -----------------------------------------------------------------------------------------------------


def principal(request: Request) -> Principal:
    """A FastAPI dependency: who asks. Raises Unauthenticated where no guard has let anybody in."""
    found = getattr(request.state, "principal", None)
    if not isinstance(found, Principal):
        raise Unauthenticated("a credential is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
    return found


def require(action: str) -> Callable[[Request], Principal]:
    """A FastAPI dependency: who asks, if their role permits `action` and their key covers the path's `model`.

    Raises NotFound for a model outside the key's patterns, PermissionDenied for a role too low.
    """

    def permitted(request: Request) -> Principal:
        found = principal(request)
        found.require(action, request.path_params.get("model"))
        return found

    return permitted


# --- errors -------------------------------------------------------------------------------------------------------


def error_response(error: PenstockError, **members: object) -> Response:
    """`{"error": message}` with the error's status, `error_id` where it has one, and further `members`."""
    answer = answer_to(error)
    return _json({**answer.content, **members}, answer.status, answer.headers)


def _json(body: MutableMapping[str, object], status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def install_errors(app: FastAPI) -> None:
    """Give every error of the application the one form, those of FastAPI and Starlette included."""
    app.add_exception_handler(PenstockError, _expected)
    app.add_exception_handler(HTTPException, _of_starlette)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(Exception, _of_anything)


async def _expected(_: Request, error: Exception) -> Response:
    assert isinstance(error, PenstockError)
    return error_response(error)


async def _of_starlette(_: Request, error: Exception) -> Response:
    """FastAPI wraps what reading a body raises: there the cause speaks."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, PenstockError):
        return error_response(error.__cause__)
    return _json({"error": str(error.detail)}, error.status_code, dict(error.headers or {}))


async def _of_validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = [f"{_place(each['loc'])}: {each['msg']}" for each in error.errors()[:TOLD]]
    return error_response(InvalidRequest("; ".join(wrong)))


def _place(location: tuple[Any, ...]) -> str:
    """('body', 'models', 0) → 'models[0]', ('query', 'wait') → 'wait', ('body',) → 'body'."""
    parts = location[1:] or location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{str(part)[:64]}" for part in parts)
    return text.removeprefix(".") if not text.startswith("[") else f"{location[0]}{text}"


async def _of_anything(_: Request, error: Exception) -> Response:
    return Response(status_code=400) if isinstance(error, ClientDisconnect) else _unexpected(error)


def _unexpected(error: Exception) -> Response:
    """A defect of ours, or an error of the domain that came out where no handler stands. Logged once."""
    if isinstance(error, PenstockError):
        return error_response(error)
    for note in getattr(error, "__notes__", ()):
        if note.startswith(LOGGED):
            return _defect(note.removeprefix(LOGGED))
    error_id = new_error_id()
    log.error("request_failed", error_id=error_id, exc_info=error)
    error.add_note(LOGGED + error_id)
    return _defect(error_id)


def _defect(error_id: str) -> Response:
    return error_response(Internal("the server failed; the details stand in its log", error_id=error_id))
