"""The services that every gRPC server has: `grpc.health.v1` (public) and reflection (with a credential)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from core.errors import InvalidRequest, NotFound
from gateway.health import Health
from gateway.rpc import SERVICE, Caller, Method, parse

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"

_Answer = health_pb2.HealthCheckResponse


class HealthService:
    """Whether the server takes requests: of the server as a whole ('') and of the inference service."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._changed = asyncio.Event()
        self._closing = False
        health.listen(lambda ready: self._wake())

    def table(self) -> dict[str, Method]:
        return {
            f"/{HEALTH}/Check": Method(unary=self._check, public=True),
            f"/{HEALTH}/Watch": Method(stream=self._watch, public=True),
        }

    def close(self) -> None:
        """Tell every watcher how it stands, and end its stream."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        if service not in ("", SERVICE):
            return int(_Answer.SERVICE_UNKNOWN)
        return int(_Answer.SERVING if self._health.ready else _Answer.NOT_SERVING)

    async def _check(self, caller: Caller, body: bytes, deadline: int) -> bytes:
        service = parse(health_pb2.HealthCheckRequest, body).service
        found = self._status(service)
        if found == _Answer.SERVICE_UNKNOWN:
            raise NotFound(f"no service {service[:128]!r}")
        return _answer(found)

    async def _watch(self, caller: Caller, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The status now, and each change of it."""
        service = parse(health_pb2.HealthCheckRequest, await _first(requests)).service
        last = None
        while True:
            changed, found = self._changed, self._status(service)
            if found != last:
                last = found
                yield _answer(found)
            if self._closing:
                return
            if changed is self._changed:
                await changed.wait()


def _answer(found: int) -> bytes:
    message: bytes = _Answer(status=found).SerializeToString()
    return message


async def _first(requests: AsyncIterator[bytes]) -> bytes:
    async for body in requests:
        return body
    raise InvalidRequest("the call brought no request")


class Reflection:
    """What the server speaks, for tools such as grpcurl."""

    def __init__(self) -> None:
        aio: Any = reflection.aio  # type: ignore[attr-defined]
        self._servicer = aio.ReflectionServicer((SERVICE, HEALTH, REFLECTION))

    def table(self) -> dict[str, Method]:
        return {f"/{REFLECTION}/ServerReflectionInfo": Method(stream=self._answer)}

    async def _answer(self, caller: Caller, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for answer in self._servicer.ServerReflectionInfo(_messages(requests), None):
            yield answer.SerializeToString()


async def _messages(requests: AsyncIterator[bytes]) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for body in requests:
        yield parse(reflection_pb2.ServerReflectionRequest, body)
