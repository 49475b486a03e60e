"""One image, FP32 1×3×224×224 as a binary tensor (588 KiB), against two copies and a loopback send of its bytes."""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.load import percentile
from benchmarks.processes import echo, penstock, push
from benchmarks.rows import Plan, Row, alternating, median
from loadtests.http_client import http_request

IMAGE = np.ones((1, 3, 224, 224), np.float32)


def large(plan: Plan) -> list[Row]:
    calls = 100 if plan.quick else 400
    body, headers = models.binary_body(IMAGE)
    with tempfile.TemporaryDirectory() as folder, penstock() as server:
        url = push(server, str(models.corner(Path(folder) / "corner.onnx")), "corner", "--max-batch", "8")
        request, host, port = http_request(url, body, headers | {"Authorization": f"Bearer {server.api_key}"})
        with echo("benchmarks.copies", str(len(request))) as unit:
            ours = Caller(host, port, request)
            bare = Caller("127.0.0.1", unit.port, request)
            ours.p50_ms(50), bare.p50_ms(50)  # warm
            pairs = alternating(plan.rounds, lambda: bare.p50_ms(calls), lambda: ours.p50_ms(calls))
            bad = ours.bad
    ratios = [mine / unit_ms for unit_ms, mine in pairs]
    return [
        Row(
            part="large",
            what="1×3×224×224 FP32, binary, c=1: p50",
            value=median(ratios),
            unit="of two copies and a loopback send",
            at_most=1.5,
            rounds=ratios,
            details={"p50 ms": median([mine for _, mine in pairs]), "unit ms": median([bare for bare, _ in pairs])},
            void=f"{bad} answers were not 2xx" if bad else "",
        )
    ]


class Caller:
    """A blocking socket that sends one request over and over."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._room = bytearray(1 << 20)
        self.bad = 0

    def p50_ms(self, calls: int) -> float:
        latencies = []
        for _ in range(calls):
            start = time.perf_counter()
            self._socket.sendall(self._request)
            head, left = self._head()
            while left:
                left -= self._socket.recv_into(self._room, left)
            latencies.append(time.perf_counter() - start)
            self.bad += not head.startswith(b"HTTP/1.1 200")
        return percentile(latencies, 0.5) * 1e3

    def _head(self) -> tuple[bytes, int]:
        """An answer's status line and headers, and how much of its body has not been read yet."""
        answer = self._socket.recv(65536)
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head, int(lengths[0]) - len(body)
