"""The listening socket, and uvicorn on it without signal handlers of its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from core.errors import Unavailable
from core.settings import Settings
from gateway.http import Plant

BACKLOG = 2048


def bind(host: str, port: int, variable: str = "PENSTOCK_HTTP_PORT") -> socket.socket:
    """A bound TCP socket. Raises Unavailable in one sentence where the port is taken, which `variable` says."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio sets no TCP_NODELAY
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"HTTP cannot listen on {host}:{port}: {error.strerror}; {variable} names another port"
        ) from None
    listener.setblocking(False)
    return listener


class HttpServer(uvicorn.Server):
    """uvicorn, stopped by `should_exit` alone: signals belong to the command that runs it."""

    def stop_accepting(self) -> None:
        """Leave new connections to others who listen on the same socket; those that are open go on."""
        for server in self.servers:
            server.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: Any, plant: Plant, settings: Settings) -> HttpServer:
    config = uvicorn.Config(
        app,
        http=plant.protocol,  # type: ignore[arg-type]  # uvicorn calls it as it would its class
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=round(settings.drain_timeout_s),
    )
    return HttpServer(config)
