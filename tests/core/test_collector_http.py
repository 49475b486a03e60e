"""What a collector answers over HTTP: hardly looked at."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from core import collector_http
from core.collector_http import BODY_BYTES
from core.otlp_spans import OverHttp
from core.spans import Span
from core.trace import Context
from tests.kept_spans import RESOURCE

SPANS = [Span("s", Context(1, 2), None, 1, 2)]


class Collector:
    """Answers each request with `head`, and then without end as long as anybody takes it."""

    def __init__(self, head: bytes) -> None:
        self.requests = self.sent = 0
        self._head = head
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1/traces"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a second time
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                self.requests += 1
                try:
                    connection.sendall(self._head)
                    while self.sent < 1 << 30 and b"Length: 0" not in self._head:
                        self.sent += connection.send(bytes(1 << 20))
                except OSError:
                    pass


@pytest.fixture
def collector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector(request.param)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2")
    yield collector
    collector.close()


@pytest.mark.parametrize("collector", [b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n"], indirect=True)
def test_of_an_endless_answer_little_is_read(collector: Collector) -> None:
    exporter = OverHttp(RESOURCE)
    assert exporter.export(SPANS) is SpanExportResult.SUCCESS
    exporter.shutdown()
    collector.close()
    assert collector.sent < 64 * BODY_BYTES + (16 << 20)  # what the kernel holds on the way


@pytest.mark.parametrize(
    "collector", [b"HTTP/1.1 503 No\r\nRetry-After: -5\r\nContent-Length: 0\r\n\r\n"], indirect=True
)
def test_it_is_not_asked_again_at_once_because_it_says_so(collector: Collector) -> None:
    exporter = OverHttp(RESOURCE)
    assert exporter.export(SPANS) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert 1 <= collector.requests <= 4


def test_a_session_that_the_environment_names_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert collector_http.session() is not None
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER", "theirs")
    assert collector_http.session() is None
