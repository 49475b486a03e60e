"""Where a request of the open loop goes: connections that answer with an outcome, over HTTP/1.1 or gRPC."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import grpc

from loadtests import payloads
from loadtests.http_client import Connection, http_request
from loadtests.seen import Outcome

PATIENCE_S = 10.0
CONNECTIONS = 64
FRESH_S = 2.0
"""Uvicorn hangs up on a connection that has been idle for 5 s."""


class Target(Protocol):
    async def call(self) -> Outcome:
        """Send the next tenant's request, and wait for its answer."""

    async def close(self) -> None: ...


class _Tenant(NamedTuple):
    """`idle`: connections, and since when (monotonic seconds)."""

    request: bytes
    idle: list[tuple[Connection, float]]


class HttpTarget:
    """Keep-alive connections, each tenant's its own; who finds none free waits for one, and the wait counts."""

    def __init__(self, url: str, transport: str, model: str, keys: Sequence[str]) -> None:
        body, headers = payloads.rest(model, transport)
        made = [http_request(url + payloads.path(model), body, self._headers(headers, key)) for key in keys]
        _, self._host, self._port = made[0]
        self._tenants = [_Tenant(request, []) for request, _, _ in made]
        self._turns = itertools.cycle(self._tenants)
        self._free = asyncio.Semaphore(CONNECTIONS)

    @staticmethod
    def _headers(headers: dict[str, str], key: str) -> dict[str, str]:
        return headers | dict([payloads.credential(key)])

    async def call(self) -> Outcome:
        async with self._free:
            try:
                return await asyncio.wait_for(self._call(next(self._turns)), PATIENCE_S)
            except (OSError, TimeoutError):
                return Outcome.ERROR

    async def _call(self, tenant: _Tenant) -> Outcome:
        connection = await self._fresh(tenant.idle)
        status, _ = await connection.call(tenant.request)
        if connection.is_open:
            tenant.idle.append((connection, time.monotonic()))
        if 200 <= status < 300:
            return Outcome.OK
        return Outcome.LATE if status == 504 else Outcome.ERROR

    async def _fresh(self, idle: list[tuple[Connection, float]]) -> Connection:
        """The one used last, so that a burst's surplus goes unused and is dropped before the server hangs up on it."""
        while idle:
            connection, since = idle.pop()
            if connection.is_open and time.monotonic() - since < FRESH_S:
                return connection
            await connection.close()
        return await Connection.open(self._host, self._port)

    async def close(self) -> None:
        for tenant in self._tenants:
            for connection, _ in tenant.idle:
                await connection.close()


class GrpcTarget:
    """One channel."""

    def __init__(self, address: str, model: str, keys: Sequence[str]) -> None:
        self._request = payloads.rpc(model)
        self._metadata = itertools.cycle([(payloads.credential(key),) for key in keys])
        self._channel = grpc.aio.insecure_channel(address)
        self._infer = self._channel.unary_unary(payloads.METHOD, bytes, bytes)

    async def call(self) -> Outcome:
        try:
            await self._infer(self._request, metadata=next(self._metadata), timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return Outcome.LATE if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else Outcome.ERROR
        return Outcome.OK

    async def close(self) -> None:
        await self._channel.close(None)
