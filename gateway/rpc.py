"""gRPC without its transport: method, metadata, bytes → bytes or a status.

`gateway/grpc_server.py` carries it on grpc.aio; another HTTP/2 server would replace that one file. Whatever is not in
the table of methods is unknown, but only to callers with a credential: without one everything is refused, except
the few public methods.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from core import trace
from core.errors import InvalidRequest, NotReady, PenstockError, TooLarge, Unsupported, printable
from core.identity import DEPLOY, PREDICT, Principal, Verifier, credential_from
from core.settings import Settings
from core.status import status_of
from gateway import metadata
from gateway.codec import parameters, protobuf
from gateway.dataplane import DataPlane
from gateway.exchange import GRPC, Exchange, InferRequest, InferResponse
from gateway.fit import Mould
from gateway.health import Health
from gateway.lifecycle import Lifecycle
from gateway.routes import Routes
from repository.watch import Watch

SERVICE = "inference.GRPCInferenceService"
MAX_DETAILS = 512
"""Characters of an error's message; percent-encoded they must fit the 8 KiB of headers that clients accept."""

NOBODY = Principal("", "nobody", "", PREDICT, ())
"""Who calls a public method: it sees no model."""


class Caller(NamedTuple):
    """`about`: what the call says of itself; `trace_id`: of the trace that it belongs to."""

    principal: Principal
    credential: bytes | None
    about: trace.Caller = trace.NOBODY
    trace_id: int = 0

    def __repr__(self) -> str:
        """Without the credential: callers are printed in tracebacks."""
        return f"<Caller {self.principal.name}>"


class Status(NamedTuple):
    """How a call ends that has no answer. `code` is a name of `grpc.StatusCode`, `trailing` goes in the trailers."""

    code: str
    message: str
    trailing: tuple[tuple[str, str], ...]


Unary = Callable[[Caller, bytes, int], Awaitable[bytes]]
"""(caller, request, deadline in monotonic ns or 0) → answer. Raises PenstockError."""
Stream = Callable[[Caller, AsyncIterator[bytes]], AsyncIterator[bytes]]
"""(caller, requests) → answers."""


Refused = Callable[[trace.Caller, int, PenstockError], None]
"""(what the call says of itself, trace id, why): a call has ended before it was handed over."""


class Method(NamedTuple):
    """Exactly one of `unary` and `stream` is set."""

    unary: Unary | None = None
    stream: Stream | None = None
    public: bool = False
    refused: Refused = lambda about, trace_id, error: None


class Methods:
    """Every method by its path (`/package.Service/Method`), and who may begin it."""

    def __init__(self, verifier: Verifier, tables: Iterable[dict[str, Method]]) -> None:
        self._verifier = verifier
        self.table = {path: method for table in tables for path, method in table.items()}

    def begin(
        self, path: str, headers: Mapping[str, str | bytes], about: trace.Caller = trace.NOBODY, trace_id: int = 0
    ) -> tuple[Method, Caller]:
        """What a call is to be handed to. Raises Unauthenticated, PermissionDenied (a key that asks no models), or
        Unsupported where the caller may know that."""
        method = self.table.get(path)
        if method is not None and method.public:
            return method, Caller(NOBODY, None, about, trace_id)
        credential = credential_from(_encoded(headers.get("authorization")), _encoded(headers.get("x-api-key")))
        caller = Caller(self._verifier.verify(credential), credential, about, trace_id)
        if method is None:
            raise Unsupported(f"this server does not offer the method {path[:128]!r}")
        caller.principal.require(PREDICT)
        return method, caller

    def refused(self, path: str, about: trace.Caller, trace_id: int, error: PenstockError) -> None:
        """`begin` has raised `error`."""
        method = self.table.get(path)
        if method is not None:
            method.refused(about, trace_id, error)


def about(headers: Mapping[str, str | bytes]) -> trace.Caller:
    """What a call's metadata say of it."""
    return trace.Caller.of(*(_encoded(headers.get(name)) for name in ("traceparent", "tracestate", "x-request-id")))


def ids(caller: trace.Caller, trace_id: int) -> tuple[tuple[str, str], ...]:
    """What every call's trailers say of it."""
    request_id, trace = caller.names(trace_id)
    return ("x-request-id", request_id), ("x-trace-id", trace)


def _encoded(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def status(error: PenstockError) -> Status:
    """How an error looks to a gRPC client."""
    trailing = []
    if error.retry_after is not None:
        trailing.append(("retry-after", str(max(1, math.ceil(error.retry_after)))))
    if error.error_id:
        trailing.append(("error-id", error.error_id))
    return Status(status_of(error).grpc, printable(error.message, MAX_DETAILS), tuple(trailing))


def parse(kind: Any, body: bytes) -> Any:
    """Bytes → a message of type `kind`, or InvalidRequest."""
    try:
        return kind.FromString(body)
    except DecodeError:
        raise InvalidRequest(f"malformed protobuf: not a {kind.DESCRIPTOR.name}") from None


# --- ModelInfer ---------------------------------------------------------------------------------------------------


class GrpcExchange(Exchange):
    """An infer request whose answer is awaited: `outcome` becomes the response's bytes, or the error."""

    __slots__ = ("_message", "_most", "outcome")

    transport = GRPC

    def __init__(self, message: protobuf.Message, caller: Caller, deadline: int, most: int) -> None:
        head = message.head
        super().__init__(head.model_name, head.model_version, caller.credential, deadline, caller.about)
        self.trace_id = caller.trace_id or self.trace_id
        self._message = message
        self._most = most
        self.outcome: asyncio.Future[bytes | PenstockError] = asyncio.get_running_loop().create_future()

    def decode(self, mould: Mould) -> InferRequest:
        return protobuf.decode(self._message, self._most)

    def reply(self, response: InferResponse) -> None:
        self._settle(protobuf.render(response))

    def fail(self, error: PenstockError) -> None:
        self._settle(error)

    def _settle(self, outcome: bytes | PenstockError) -> None:
        """A client that left in this turn of the loop has cancelled the future already."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class RefusedCall(Exchange):
    """An infer request that was not read."""

    __slots__ = ()

    transport = GRPC

    def __init__(self, about: trace.Caller, trace_id: int) -> None:
        super().__init__("", "", None, 0, about)
        self.trace_id = trace_id or self.trace_id


class Inference:
    """`inference.GRPCInferenceService`: decides nothing; the data plane and `gateway/metadata.py` answer."""

    def __init__(
        self, plane: DataPlane, routes: Routes, watch: Watch, commands: Lifecycle, health: Health, settings: Settings
    ) -> None:
        self._plane = plane
        self._routes = routes
        self._watch = watch
        self._commands = commands
        self._health = health
        self._settings = settings

    def table(self) -> dict[str, Method]:
        """Of the service's methods, those that work; the others are unknown."""
        answered = {
            "ServerLive": (self._server_live, True),
            "ServerReady": (self._server_ready, True),
            "ServerMetadata": (self._server_metadata, False),
            "ModelReady": (self._model_ready, False),
            "ModelMetadata": (self._model_metadata, False),
            "ModelConfig": (self._model_config, False),
            "ModelStatistics": (self._model_statistics, False),
            "RepositoryIndex": (self._index, False),
            "RepositoryModelLoad": (self._load, False),
            "RepositoryModelUnload": (self._unload, False),
        }
        methods = {
            name: Method(_message_method(name, answer), None, public) for name, (answer, public) in answered.items()
        }
        methods["ModelInfer"] = Method(self._infer, refused=self._refused)
        return {f"/{SERVICE}/{name}": method for name, method in methods.items()}

    async def _infer(self, caller: Caller, body: bytes, deadline: int) -> bytes:
        try:
            message = self._parsed(body)
        except PenstockError as error:
            self._refused(caller.about, caller.trace_id, error)
            raise
        exchange = GrpcExchange(message, caller, deadline, self._settings.max_tensors)
        self._plane.infer(exchange)
        try:
            outcome = await exchange.outcome
        except asyncio.CancelledError:
            self._plane.cancel(exchange)
            raise
        if isinstance(outcome, PenstockError):
            raise outcome
        return outcome

    def _parsed(self, body: bytes) -> protobuf.Message:
        if len(body) > self._settings.max_body_bytes:
            raise TooLarge(f"the message is larger than {self._settings.max_body_bytes} bytes")
        return protobuf.parse(body, self._settings.max_tensors)

    def _refused(self, about: trace.Caller, trace_id: int, error: PenstockError) -> None:
        self._plane.refused(RefusedCall(about, trace_id), error)

    # --- server

    async def _server_live(self, caller: Caller, request: Any) -> Any:
        return {"live": True}

    async def _server_ready(self, caller: Caller, request: Any) -> Any:
        return {"ready": self._health.ready}

    async def _server_metadata(self, caller: Caller, request: Any) -> Any:
        return metadata.server_metadata()

    # --- models

    async def _model_ready(self, caller: Caller, request: Any) -> Any:
        """False is an answer, where a version is known and not ready; NotFound where it is not known."""
        try:
            self._routes.table.resolve(request.name, request.version, caller.principal)
        except NotReady:
            return {"ready": False}
        return {"ready": True}

    async def _model_metadata(self, caller: Caller, request: Any) -> Any:
        table = self._routes.table
        return metadata.model_metadata(
            table.resolve(request.name, request.version, caller.principal), table, caller.principal
        )

    async def _model_config(self, caller: Caller, request: Any) -> Any:
        route = self._routes.table.resolve(request.name, request.version, caller.principal)
        return {"config": metadata.model_config(route.version)}

    async def _model_statistics(self, caller: Caller, request: Any) -> Any:
        return metadata.statistics(self._routes.table, request.name, request.version, caller.principal)

    # --- repository

    async def _index(self, caller: Caller, request: Any) -> Any:
        _check_repository(request.repository_name)
        catalog = await self._watch.refresh()
        return {"models": metadata.repository_index(catalog, caller.principal, request.ready)}

    async def _load(self, caller: Caller, request: Any) -> Any:
        caller.principal.require(DEPLOY, request.model_name)
        _check_repository(request.repository_name)
        parameters.check_load(request.parameters)
        await self._commands.load(request.model_name)
        return {}

    async def _unload(self, caller: Caller, request: Any) -> Any:
        caller.principal.require(DEPLOY, request.model_name)
        _check_repository(request.repository_name)
        await self._commands.unload(request.model_name)
        return {}


def _check_repository(name: str) -> None:
    if name:
        raise Unsupported("there is one repository, without a name: leave repository_name empty")


def _message_method(name: str, answer: Callable[[Caller, Any], Awaitable[Any]]) -> Unary:
    """A method in messages, its answer a dict in the protocol's words → one in bytes."""
    request = getattr(service_pb2, f"{name}Request")
    response = getattr(service_pb2, f"{name}Response")

    async def call(caller: Caller, body: bytes, deadline: int) -> bytes:
        told = await answer(caller, parse(request, body))
        message: bytes = json_format.ParseDict(told, response(), ignore_unknown_fields=True).SerializeToString()
        return message

    return call
