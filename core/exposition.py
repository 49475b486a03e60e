"""`GET /metrics` of one process, for Prometheus, on a port of its own and from a thread of its own.

The first free port from `metrics_port` on is taken, so that several processes of one host each have theirs. A file in
`PENSTOCK_HOME/metrics/` names it, in the form of Prometheus' file discovery, for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import orjson
import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from core.errors import Internal, MethodNotAllowed, NotFound, PenstockError, Unauthenticated, new_error_id
from core.identity import OBSERVE, Verifier, credential_from
from core.settings import EVERYWHERE, LOOPBACK, Settings, authority
from core.status import answer_to

log = structlog.get_logger(__name__)

PORTS = 100
"""Ports that are tried."""
PATIENCE_S = 5.0
"""A client that sends nothing for so long, or takes nothing, is cut off."""
AT_ONCE = 16
"""Connections at one time. One more takes the place of the oldest that has not asked yet, with a key where that needs
one, so that strangers who hold theirs keep nobody's scrape away; where all have asked it is cut off."""
ENDING = 64
"""Threads of connections that were cut off and have yet to end: beyond these nobody takes another's place."""
WHOLE_S = 15.0
"""However busily it trickles, it has had its scrape by then."""
FOLDER = "metrics"

ASKED = "penstock.asked"
"""Of a request's environ: called when it has shown that it may ask."""

Find = Callable[[], Verifier]
"""The verifier of today: asked at each scrape that needs a credential, from the server's thread."""


class Exposition:
    """`process`: what Prometheus is told that this process is. `find`: asked where more than loopback is served."""

    def __init__(self, registry: CollectorRegistry, settings: Settings, process: str, find: Find) -> None:
        self.port = 0
        """0: none could be had, or none was wanted."""
        self._settings = settings
        self._process = process
        self._find = find
        self._app = make_wsgi_app(registry)
        self._server: _Server | None = None
        self._file: Path | None = None

    def start(self) -> None:
        """Serve from now on. Where no port is free the process goes on without, and says so."""
        settings = self._settings
        if not settings.metrics_port:
            return
        last = min(65535, settings.metrics_port + PORTS - 1)
        for port in range(settings.metrics_port, last + 1):
            with contextlib.suppress(OSError):
                self._server = _Server(settings.metrics_host, port, self._answer)
                self.port = port
                break
        if self._server is None:
            log.warning("no port for metrics", host=settings.metrics_host, first=settings.metrics_port, last=last)
            return
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
        self._tell()

    def close(self) -> None:
        """Serve no more. Blocks for a moment."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _tell(self) -> None:
        folder = self._settings.home.absolute() / FOLDER
        host = self._settings.metrics_host
        reached = authority(socket.gethostname() if host in EVERYWHERE else host, self.port)
        told = [{"targets": [reached], "labels": {"process": self._process}}]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(folder)
            self._file = folder / f"{self._process}-{os.getpid()}.json"
            partial = self._file.with_suffix(".partial")
            partial.write_text(json.dumps(told))
            partial.rename(self._file)
        except OSError as error:
            log.warning("metrics are served, but not announced", folder=str(folder), error=error.strerror)

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            self._check(environ)
            environ[ASKED]()
            known = {"HTTP_ACCEPT": _accept(environ.get("HTTP_ACCEPT", "")), "REQUEST_METHOD": "GET"}
            answer: Iterable[bytes] = self._app(environ | known, start)
            return [] if environ["REQUEST_METHOD"] == "HEAD" else answer
        except PenstockError as error:
            return _told(error, start)
        except Exception:
            error_id = new_error_id()
            log.exception("a scrape failed", error_id=error_id)
            return _told(Internal("the scrape failed; the log has the details", error_id=error_id), start)

    def _check(self, environ: dict[str, Any]) -> None:
        if self._settings.metrics_host not in LOOPBACK:
            given = (environ.get(name) for name in ("HTTP_AUTHORIZATION", "HTTP_X_API_KEY"))
            credential = credential_from(*(value.encode("latin-1", "replace") if value else None for value in given))
            if credential is None:
                raise Unauthenticated("metrics need a key of the role observe")
            self._find().verify(credential).require(OBSERVE)
        if environ["PATH_INFO"] != "/metrics":
            raise NotFound("metrics are at /metrics")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("metrics are only read")


def _accept(header: str) -> str:
    """Without what the library would trip over: a version that is none."""
    versions = re.findall(r"version=([^;,]*)", header)
    return header if all(re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})*", version) for version in versions) else ""


def _told(error: PenstockError, start: Callable[..., Any]) -> Iterable[bytes]:
    status, headers, content = answer_to(error)
    body = orjson.dumps(content)
    given = [*headers.items(), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start(f"{status} {error.reason}", given)
    return [body]


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S
    error_message_format = "%(message)s"
    error_content_type = "text/plain"

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        return environ | {ASKED: functools.partial(self.server.guests.asked, self.connection)}  # type: ignore[attr-defined]

    def version_string(self) -> str:
        """Whose Python this is, is nobody's business."""
        return "penstock"

    def log_message(self, *arguments: object) -> None:
        """No line for each scrape."""


class _Guests:
    """The connections that have a place, the oldest first, each with whether it has asked; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: dict[socket.socket, bool] = {}
        self._ending = 0

    def admitted(self, connection: socket.socket) -> bool:
        """Whether there is a place for it, by its own or another's leave."""
        with self._lock:
            if len(self._here) >= AT_ONCE:
                stranger = next((each for each, asked in self._here.items() if not asked), None)
                if stranger is None or self._ending >= ENDING:
                    return False
                del self._here[stranger]
                self._ending += 1
                _cut_off(stranger)
            self._here[connection] = False
            return True

    def asked(self, connection: socket.socket) -> None:
        with self._lock:
            if connection in self._here:
                self._here[connection] = True

    def left(self, connection: socket.socket) -> None:
        with self._lock:
            if self._here.pop(connection, None) is None:
                self._ending -= 1


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Binds in its constructor. Raises OSError."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, app: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.guests = _Guests()
        super().__init__((host, port), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Without the library's look-up of the host's name, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.guests.admitted(request):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be had
            self.guests.left(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        end = threading.Timer(WHOLE_S, _cut_off, (request,))
        end.daemon = True
        try:
            end.start()
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self.guests.left(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left: nothing to say."""


def _cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def sweep(folder: Path) -> None:
    """Remove what processes left that have died."""
    for file in folder.glob("*.json"):
        digits = file.stem.rpartition("-")[2]
        if digits.isdigit() and not _lives(int(digits)):
            file.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
