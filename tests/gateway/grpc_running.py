"""A gRPC server for tests: real routes, batchers and data plane over scripted transports, on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import tritonclient.grpc.aio as triton

from core.errors import PenstockError
from core.identity import ADMIN, DEPLOY, PREDICT, Credential, NewKey, Principal, Verifier, new_key
from core.settings import Settings
from gateway.dataplane import DataPlane
from gateway.grpc_server import GrpcServer, serve
from gateway.health import Health
from gateway.routes import Routes
from gateway.transports.fake import Fake
from repository.catalog import Catalog, catalog
from repository.records import READY, UNAVAILABLE, Signature, TensorSpec, Version, VersionState


def version(model: str = "echo", number: int = 1, **changes: Any) -> Version:
    """Takes FP32 rows of four `x`, and answers with them under the same name."""
    spec = TensorSpec("x", "FP32", (-1, 4))
    values: dict[str, Any] = {
        "model": model,
        "version": number,
        "owner": "o",
        "format": "onnx",
        "digest": "d" * 64,
        "size": 1,
        "signature": Signature((spec,), (spec,)),
        "max_batch": 8,
        "default_deadline_ms": 30_000,
        "queue_bound": 64,
        "created": 0.0,
    }
    return Version(**{**values, **changes})


def single(datatype: str, width: int = -1, **changes: Any) -> Version:
    """A model without batching that echoes one tensor of a datatype."""
    spec = TensorSpec("x", datatype, (width,))
    return version(f"echo-{datatype}", signature=Signature((spec,), (spec,)), max_batch=0, **changes)


class Commands:
    """Remembers what it was asked; fails with `error` where there is one."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.error: PenstockError | None = None

    async def load(self, model: str, version: int | None = None) -> None:
        self._ask("load", model)

    async def unload(self, model: str, version: int | None = None) -> None:
        self._ask("unload", model)

    def _ask(self, verb: str, model: str) -> None:
        self.asked.append((verb, model))
        if self.error is not None:
            raise self.error


class Book:
    """What a watch is to the server."""

    def __init__(self, read: Catalog) -> None:
        self.catalog = read

    async def refresh(self) -> Catalog:
        return self.catalog


class Keys(NamedTuple):
    predict: str
    deploy: str
    admin: str
    narrow: str
    """Sees models whose names begin with `other`."""
    expired: str


class Running(NamedTuple):
    server: GrpcServer
    routes: Routes
    plane: DataPlane
    transports: dict[str, Fake]
    """By model and version: `echo/1`."""
    health: Health
    commands: Commands
    keys: Keys
    channel: grpc.aio.Channel
    """Without a credential."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def bearer(self, key: str = "") -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.keys.predict}"}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[triton.InferenceServerClient]:
        async with triton.InferenceServerClient(self.address) as client:
            yield client

    async def call(self, path: str, body: bytes = b"", key: str | None = "", timeout: float = 10.0) -> bytes:
        """One call in bytes; `key` None: without a credential."""
        metadata = None if key is None else [("authorization", f"Bearer {key or self.keys.predict}")]
        return bytes(await self.unary(path)(body, metadata=metadata, timeout=timeout))

    def unary(self, path: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        return self.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)

    def stream(self, path: str) -> grpc.aio.StreamStreamMultiCallable[bytes, bytes]:
        return self.channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)


def verifier() -> tuple[Verifier, Keys]:
    issued: list[NewKey] = []
    credentials = []
    for name, role, patterns, expires in (
        ("predict", PREDICT, ("*",), 0.0),
        ("deploy", DEPLOY, ("*",), 0.0),
        ("admin", ADMIN, ("*",), 0.0),
        ("narrow", DEPLOY, ("other*",), 0.0),
        ("expired", ADMIN, ("*",), 1.0),
    ):
        key = new_key()
        issued.append(key)
        credentials.append(Credential(Principal(key.key_id, name, name, role, patterns), key.digest, expires))
    verifier = Verifier()
    verifier.replace(credentials)
    return verifier, Keys(*(key.secret for key in issued))


@asynccontextmanager
async def running(
    *versions: Version, failed: Version | None = None, transport: Any = Fake, **settings: Any
) -> AsyncIterator[Running]:
    """`versions` are open, `failed` is known and is not."""
    conf = Settings(grpc_port=settings.pop("grpc_port", 0), **settings)
    opened = versions or (version(), version(number=2), version("other"))
    routes, health, commands = Routes(conf), Health(), Commands()
    checker, keys = verifier()
    plane = DataPlane(checker, routes, conf)
    transports = {one.key: transport() for one in opened}
    for one in opened:
        await routes.open(one, transports[one.key])
    states = [VersionState(model=one.model, version=one.version, state=READY) for one in opened]
    if failed is not None:
        states.append(
            VersionState(model=failed.model, version=failed.version, state=UNAVAILABLE, reason="it is damaged")
        )
    book = Book(catalog(1, [*opened, *([failed] if failed else [])], states))
    routes.refresh(book.catalog)
    health.set(True)
    server = await serve(plane, routes, book, commands, health, checker, conf)  # type: ignore[arg-type]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        try:
            yield Running(server, routes, plane, transports, health, commands, keys, channel)
        finally:
            await server.stop(0.0)
            await routes.close()
