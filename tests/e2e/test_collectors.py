"""A collector that is away, hangs, or speaks nonsense: predictions go on, what waits, and what is lost, is counted."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import penstock
import pytest

from tests.graphs import identity
from tests.running import RunningServer, running
from tests.watched import Traces

ROOM = 64
REQUESTS = 60
"""Of eight spans each: many more than there is room for."""


class Silent:
    """Takes connections and reads, but says nothing, or what no collector says."""

    def __init__(self, words: bytes = b"") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._words = words
        self._taken: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._taken.append(connection)
            connection.sendall(self._words)

    def close(self) -> None:
        self._listener.close()
        for connection in self._taken:
            connection.close()


@contextmanager
def watched(home: Path, endpoint: str, protocol: str) -> Iterator[RunningServer]:
    """An embedded server that traces everything there."""
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_TRACES_SAMPLER": "always_on",
        "OTEL_BSP_MAX_QUEUE_SIZE": str(ROOM),
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_SERVICE_NAME": f"test-{home.parent.name}",
    }
    with running(home, samples="false", **variables) as server:
        yield server


def predicted(server: RunningServer, folder: Path, times: int) -> list[float]:
    """Push a model, ask it that often; the seconds that each took."""
    artifact = folder / "identity.onnx"
    artifact.write_bytes(identity("FP32"))
    took = []
    with penstock.connect(server.url, api_key=server.api_key) as ps:
        ps.push(artifact, "m", max_batch=4)
        for _ in range(times):
            began = time.monotonic()
            ps.predict("m", [[1.0, 2.0]])
            took.append(time.monotonic() - began)
    return took


def spans(server: RunningServer) -> dict[str, float]:
    """penstock_spans_total by outcome."""
    (file,) = (server.home / "metrics").glob("*.json")
    (told,) = json.loads(file.read_text())
    with urllib.request.urlopen(f"http://{told['targets'][0]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: float(value) for name, value in re.findall(r'^penstock_spans_total\{outcome="(\w+)"\} (\S+)', text, re.M)
    }


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 NONSENSE\r\n\r\n"])
def test_a_collector_that_hangs_is_in_nobodys_way(tmp_path: Path, protocol: str, words: bytes) -> None:
    collector = Silent(words)
    try:
        with watched(tmp_path / "home", f"http://127.0.0.1:{collector.port}", protocol) as server:
            took = predicted(server, tmp_path, REQUESTS)
            counted = spans(server)
    finally:
        collector.close()
    assert max(took) < 9
    if not words:
        assert counted["exported"] == 0
        assert counted["dropped"] >= REQUESTS * 8 - 2 * ROOM
        assert (tmp_path / "home.log").read_text().count("cannot be exported") <= 1


def test_a_collector_that_is_away_costs_its_spans_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with watched(tmp_path / "home", f"http://127.0.0.1:{port}", "grpc") as server:
        assert max(predicted(server, tmp_path, REQUESTS)) < 9
        counted = spans(server)
    assert counted["exported"] == 0
    assert counted["dropped"] > 0


def test_one_that_is_there_gets_them_all(tmp_path: Path, jaeger: Traces) -> None:
    """In one process too there is a trace with all stages, and the execution under its publishing."""
    with watched(tmp_path / "home", jaeger.otlp, "grpc") as server:
        predicted(server, tmp_path, 3)
        deadline = time.monotonic() + 20
        while len(found := [t for t in jaeger.of(f"test-{tmp_path.name}") if len(t["spans"]) == 8]) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    for trace in found:
        names = {span["operationName"] for span in trace["spans"]}
        assert names >= {"admission", "batch wait", "publish", "queue", "compute", "reply", "process m"}
