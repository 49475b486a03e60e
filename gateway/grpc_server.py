"""`gateway/rpc.py` on grpc.aio.

Every method is registered as one that streams its requests, whatever its definition says: on the wire there is no
difference, and so the server decides by the headers alone before it reads a byte of the message, and may stop waiting
for one that trickles in.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import grpc
import structlog

from core.errors import Draining, InvalidRequest, PenstockError, SlowSender, Unavailable
from core.identity import Verifier
from core.settings import Settings, authority
from gateway.dataplane import DataPlane, internal
from gateway.health import Health
from gateway.lifecycle import Lifecycle
from gateway.routes import Routes
from gateway.rpc import Caller, Inference, Method, Methods, about, ids, status
from gateway.rpc_standard import HealthService, Reflection
from repository.watch import Watch

log = structlog.get_logger()

INT32_MAX = (1 << 31) - 1
"""The largest number that a channel option takes."""
SLACK_BYTES = 1 << 16
"""Messages this much too large are still received, so that the answer says what the limit is."""

PORT = "PENSTOCK_GRPC_PORT names another port"

Metadata = tuple[tuple[str, str], ...]
_Context = Any
"""grpc.aio.ServicerContext[bytes, bytes]; its stubs lag behind."""
_EOF = grpc.aio.EOF  # type: ignore[attr-defined]


class GrpcServer:
    """A running server. `port` is the one that it listens on."""

    def __init__(self, server: grpc.aio.Server, handlers: _Handlers, watchers: HealthService, port: int) -> None:
        self._server = server
        self._handlers = handlers
        self._watchers = watchers
        self.port = port

    @property
    def paths(self) -> list[str]:
        """Of every method that is offered."""
        return self._handlers.paths

    @property
    def asked_at(self) -> float:
        """When the last call came, in monotonic seconds."""
        return self._handlers.asked_at

    async def stop(self, grace: float) -> None:
        """Begin no more calls, give those in progress `grace` seconds, cut off the rest. Watchers of the health are
        told how it stands first."""
        self._watchers.close()
        stopping = asyncio.ensure_future(self._server.stop(grace))
        await self._handlers.end_streams()
        await stopping


async def serve(
    plane: DataPlane,
    routes: Routes,
    watch: Watch,
    commands: Lifecycle,
    health: Health,
    verifier: Verifier,
    settings: Settings,
    shared: bool = False,
) -> GrpcServer:
    """Listen on `settings.host`, `settings.grpc_port` (0 = any free one). Raises Unavailable for an occupied port.

    `shared`: several processes listen on the port, and the kernel gives each its connections.
    """
    watchers = HealthService(health)
    inference = Inference(plane, routes, watch, commands, health, settings)
    methods = Methods(verifier, [inference.table(), watchers.table(), Reflection().table()])
    handlers = _Handlers(methods, settings.body_timeout_s)
    server = grpc.aio.server(handlers=(handlers,), options=_options(settings, shared))
    port = _bind(server, settings.host, settings.grpc_port, shared)
    await server.start()
    return GrpcServer(server, handlers, watchers, port)


def _options(settings: Settings, shared: bool) -> list[tuple[str, int]]:
    largest = min(settings.max_body_bytes + SLACK_BYTES, INT32_MAX)
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_concurrent_streams", settings.grpc_max_streams),
        ("grpc.keepalive_time_ms", _ms(settings.grpc_keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(settings.grpc_ping_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.grpc_min_ping_interval_s)),
        ("grpc.server_handshake_timeout_ms", _ms(settings.header_timeout_s)),
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _bind(server: grpc.aio.Server, host: str, port: int, shared: bool) -> int:
    if not shared:
        check_port(host, port)
    try:
        return server.add_insecure_port(authority(host, port))
    except RuntimeError:
        raise Unavailable(f"gRPC cannot listen on {authority(host, port)}; {PORT}") from None


def check_port(host: str, port: int) -> None:
    """Raise Unavailable where the port is taken: bound once here, since the library would not say why it could not,
    but write to stderr."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Unavailable(f"gRPC cannot listen on {authority(host, port)}: {reason}; {PORT}") from None


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Calls as grpc.aio brings them → calls as `Methods` takes them."""

    def __init__(self, methods: Methods, body_timeout_s: float) -> None:
        self._methods = methods
        self._body_timeout_s = body_timeout_s
        self._loop = asyncio.get_running_loop()
        self._reading: dict[_Context, Metadata] = {}
        """Streams that wait for their client's next request, and what their trailers say of them."""
        self._endings: set[asyncio.Task[None]] = set()
        self.asked_at = -math.inf

    @property
    def paths(self) -> list[str]:
        return list(self._methods.table)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Called with the headers of each call."""
        self.asked_at = time.monotonic()
        headers = dict(details.invocation_metadata)
        told = about(headers)
        trace_id = told.new_trace()
        try:
            method, caller = self._methods.begin(details.method, headers, told, trace_id)
        except PenstockError as error:
            self._methods.refused(details.method, told, trace_id, error)
            return grpc.stream_unary_rpc_method_handler(partial(_refuse, error, ids(told, trace_id)))
        if method.stream is not None:
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, method, caller))
        return grpc.stream_unary_rpc_method_handler(partial(self._unary, method, caller))

    async def _unary(self, method: Method, caller: Caller, requests: object, context: _Context) -> bytes:
        assert method.unary is not None
        named = ids(caller.about, caller.trace_id)
        try:
            context.set_trailing_metadata(named)
            return await method.unary(caller, await self._request(method, caller, context), _deadline(context))
        except PenstockError as error:
            await _end(context, error, named)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _end(context, internal(error), named)

    async def _request(self, method: Method, caller: Caller, context: _Context) -> bytes:
        timer = self._loop.call_later(self._body_timeout_s, self._late, method, caller, context)
        try:
            body = await context.read()
        finally:
            timer.cancel()
        if body is _EOF:
            error = InvalidRequest("the call brought no request")
            method.refused(caller.about, caller.trace_id, error)
            raise error
        message: bytes = body
        return message

    def _late(self, method: Method, caller: Caller, context: _Context) -> None:
        """End a call that waits for its message. (A cancelled read would leave the library writing to freed memory.)"""
        error = SlowSender(f"the message did not arrive within {self._body_timeout_s:g} s")
        method.refused(caller.about, caller.trace_id, error)
        self._end_soon(context, error, ids(caller.about, caller.trace_id))

    async def _stream(
        self, method: Method, caller: Caller, requests: object, context: _Context
    ) -> AsyncIterator[bytes]:
        assert method.stream is not None
        named = ids(caller.about, caller.trace_id)
        try:
            context.set_trailing_metadata(named)
            async for answer in method.stream(caller, self._requests(context, named)):
                yield answer
        except PenstockError as error:
            await _end(context, error, named)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _end(context, internal(error), named)

    async def _requests(self, context: _Context, named: Metadata) -> AsyncIterator[bytes]:
        while True:
            self._reading[context] = named
            try:
                body = await context.read()
            finally:
                self._reading.pop(context, None)
            if body is _EOF:
                return
            yield body

    async def end_streams(self) -> None:
        """End the streams whose clients have nothing more to ask, but do not leave."""
        for context, named in list(self._reading.items()):
            await _abort(context, Draining("the server is stopping"), named)

    def _end_soon(self, context: _Context, error: PenstockError, named: Metadata) -> None:
        task = self._loop.create_task(_abort(context, error, named))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)


async def _refuse(error: PenstockError, named: Metadata, requests: object, context: _Context) -> bytes:
    await _end(context, error, named)


async def _end(context: _Context, error: PenstockError, named: Metadata) -> NoReturn:
    """The call ends with the error's status and without a message: what a handler returns is sent, whatever its code,
    and a client that reads a stream would take it for an answer."""
    code, message, trailing = status(error)
    await context.abort(grpc.StatusCode[code], message, (*trailing, *named))
    raise AssertionError("abort raises")


async def _abort(context: _Context, error: PenstockError, named: Metadata) -> None:
    """End a call from outside its handler, which then finds that it has been ended."""
    with suppress(grpc.aio.AbortError, grpc.aio.UsageError):
        await _end(context, error, named)


def _deadline(context: _Context) -> int:
    """The client's deadline in monotonic nanoseconds; 0 = it set none."""
    remaining = context.time_remaining()
    return 0 if remaining is None else time.monotonic_ns() + int(remaining * 1e9)
