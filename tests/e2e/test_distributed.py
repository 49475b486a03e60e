"""The production shape on one machine, as `make up-distributed` starts it: RabbitMQ, MongoDB, Ray, two gateways."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import penstock
import psutil
import pytest
from penstock.client import Client

from tests.production import Production, gateways_in, push_numbered, ready, status, waited
from tests.watched import Metrics, Traces

ECHO = """\
class Echo:
    def predict(self, inputs):
        return {"y": inputs["x"]}
"""
ONE_TO_ONE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}


@pytest.fixture(scope="module")
def ps(production: Production) -> Iterator[Client]:
    server = production.server
    with penstock.connect(server.url, control=server.control, api_key=server.api_key) as client:
        yield client


def test_what_is_pushed_is_served_at_once(ps: Client, tmp_path: Path) -> None:
    """Through broker and replica, as soon as the push says that it is ready."""
    for name in ("first", "second"):
        assert push_numbered(ps, tmp_path, name, 7) == 1
        answer = ps.predict(name, np.array([[1.0], [2.0]], np.float32))
        assert np.asarray(answer["y"] if isinstance(answer, dict) else answer).ravel()[0] == 8.0


def test_code_runs_beside_the_replica(ps: Client, tmp_path: Path) -> None:
    """Not in the process that knows the broker's password."""
    (tmp_path / "echo.py").write_text(ECHO)
    ps.push(f"{tmp_path / 'echo.py'}:Echo", "beside", signature=ONE_TO_ONE, max_batch=4, allow_code=True)
    (replica,) = ready(ps, "beside")
    assert psutil.Process(replica["pid"]).children()


def test_two_gateways_answer_on_one_socket(ps: Client) -> None:
    waited(lambda: len(gateways_in(status(ps))) == 2)


def test_it_is_watched_by_what_clients_are_told(production: Production) -> None:
    """Jaeger and Prometheus are where client.toml says, and the greeting names the same addresses; every process of
    ours is told where spans go, and scraped."""
    server = production.server
    told = tomllib.loads((server.home / "client.toml").read_text())
    Traces(told["jaeger"], "").services()
    metrics = Metrics(told["prometheus"], server.home / "metrics")
    lines = (f"\n  traces   {told['jaeger']}      Jaeger", f"\n  metrics  {told['prometheus']}      Prometheus\n")
    waited(lambda: all(line in server.log.read_text() for line in lines))
    for word in ("control", "workers", "server.gateway_process"):
        for process in production.processes(word):
            assert process.environ()["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith("http://127.0.0.1:")
    waited(lambda: {"control", "workers", "gateway", "worker"} <= metrics.up())
