"""deploy/nginx.conf: limits that are the gateways' own, and a gateway that is gone is passed over.

Where nginx is installed it runs here as it is, but for its ports, the names of the gateways and what its version lacks.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.errors import Unavailable
from core.settings import MIB, Settings
from loadtests.processes import free_port
from server.servers import obtaining
from server.servers.choice import may_install
from tests.deploy.composed import ROOT, seconds, services
from tests.services import LEFT_OUT

CONF = ROOT / "deploy/nginx.conf"
SEARCHED = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"
BOUND_S = 20.0


def value(directive: str) -> str:
    """The one value that a directive has throughout."""
    (found,) = set(re.findall(rf"^\s*{directive} ([^;]+);", CONF.read_text(), re.MULTILINE))
    return str(found)


def test_upstreams_are_services_at_the_ports_they_listen_on() -> None:
    """And the proxy's own ports are those that are published."""
    settings = Settings()
    servers = set(re.findall(r"^\s*server (\S+):(\d+) ", CONF.read_text(), re.MULTILINE))
    asked = {"gateway": (settings.http_port, settings.grpc_port), "control": (settings.control_port,)}
    assert servers == {(name, str(port)) for name, ports in asked.items() for port in ports}
    assert asked.keys() <= services().keys()
    listening = re.findall(r"^\s*listen (\d+);", CONF.read_text(), re.MULTILINE)
    assert sorted(f"127.0.0.1:{port}:{port}" for port in listening) == services()["proxy"]["ports"]


def test_limits_are_those_of_a_gateway() -> None:
    """A body that a gateway takes is passed on, and an answer that it may give is waited for."""
    settings = Settings()
    assert re.search(rf"client_max_body_size {settings.max_body_bytes // MIB}m;", CONF.read_text())
    assert f"exceeds {settings.max_body_bytes} bytes" in CONF.read_text()
    assert value("large_client_header_buffers") == f"4 {settings.max_header_bytes // 1024}k"
    for directive in ("proxy_read_timeout", "grpc_read_timeout"):
        assert seconds(value(directive)) * 1000 > settings.max_deadline_ms
    idle = re.findall(r"keepalive_timeout (\d+s);\n\s*keepalive_requests \d+;\n    }", CONF.read_text())
    assert len(idle) == 2
    assert all(seconds(each) < settings.keep_alive_s for each in idle)
    assert value("http2_max_concurrent_streams") == str(settings.grpc_max_streams)


class Gateway(http.server.ThreadingHTTPServer):
    """Answers every request with `status` and its own number; what it was sent is in `bodies`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.status = 200
        self.bodies: list[bytes] = []
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def leave(self) -> None:
        """As a process that dies: nobody listens, and every connection ends."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"port": self.server.server_address[1]}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


def native(gateways: list[Gateway], port: int, folder: Path) -> str:
    """The configuration for this machine."""
    text = CONF.read_text()
    servers = "".join(f"server 127.0.0.1:{gateway.server_address[1]} max_fails=0;" for gateway in gateways)
    text = re.sub(r"server (gateway|control):\d+ resolve max_fails=0;", servers, text)
    text = re.sub(r"resolver [^;]+;", "", text)
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    text = text.replace("listen 8082;", f"listen 127.0.0.1:{free_port()};")
    text = text.replace("listen 8081;\n        http2 on;", f"listen 127.0.0.1:{free_port()} http2;")
    return "daemon off;\n" + text.replace("/tmp/", f"{folder}/").replace("/dev/stderr", f"{folder}/error.log")


@pytest.fixture
def gateways() -> Iterator[list[Gateway]]:
    both = [Gateway(), Gateway()]
    yield both
    for gateway in both:
        gateway.leave()


@pytest.fixture(scope="module")
def nginx() -> str:
    """The program; installed where that may be done, else what needs it is left out."""
    if shutil.which("nginx", path=SEARCHED) is None:
        may = may_install(os.getuid(), os.environ)
        try:
            obtaining.install("nginx", "nginx", may, lambda step: None)
        except Unavailable as error:
            if may:
                pytest.fail(error.message)
            pytest.skip(LEFT_OUT + error.message)
    found = shutil.which("nginx", path=SEARCHED)
    assert found is not None
    return found


@pytest.fixture
def proxy(nginx: str, gateways: list[Gateway], tmp_path: Path) -> Iterator[httpx.Client]:
    port, conf = free_port(), tmp_path / "nginx.conf"
    conf.write_text(native(gateways, port, tmp_path))
    subprocess.run([nginx, "-t", "-c", conf], check=True, capture_output=True, timeout=30)
    process = subprocess.Popen([nginx, "-c", conf], stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            _until_it_answers(client)
            for gateway in gateways:
                gateway.bodies.clear()
            yield client
    finally:
        process.terminate()
        process.wait(BOUND_S)


def _until_it_answers(client: httpx.Client) -> None:
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        try:
            client.post("/", content=b"x")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("nginx does not listen")


def test_a_gateway_that_is_gone_is_passed_over(proxy: httpx.Client, gateways: list[Gateway]) -> None:
    """No request fails, small or large; each arrives whole."""
    gateways[0].leave()
    for size in (10, 2_000_000):
        for _ in range(4):
            assert proxy.post("/v2/models/m/infer", content=b"x" * size).status_code == 200
    assert [len(body) for body in gateways[1].bodies] == [10] * 4 + [2_000_000] * 4


def test_a_gateway_that_refuses_is_passed_over_once(proxy: httpx.Client, gateways: list[Gateway]) -> None:
    """503 comes through when both say so."""
    gateways[0].status = 503
    assert {proxy.post("/", content=b"x").status_code for _ in range(6)} == {200}
    gateways[1].status = 503
    answer = proxy.post("/", content=b"x")
    assert (answer.status_code, "port" in answer.json()) == (503, True)


def test_errors_of_the_proxy_look_like_ours(proxy: httpx.Client, gateways: list[Gateway]) -> None:
    """A body that is too large, and no gateway at all."""
    answer = proxy.post("/", content=bytes(Settings().max_body_bytes + 1))
    assert (answer.status_code, list(answer.json())) == (413, ["error"])
    for gateway in gateways:
        gateway.leave()
    answer = proxy.post("/", content=b"x")
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (
        503,
        {"error": "no gateway answers"},
        "1",
    )
