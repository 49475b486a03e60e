"""What nobody thought of: requests made up from the OpenAPI document, and bytes made up from nothing at all."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import penstock
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

from tests.e2e.attacks import VALID, Target
from tests.gateway.wire import post

BOUNDED = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)


def test_the_openapi_documents(victim: Target) -> None:
    """Every operation, with what its schema allows and what it does not: never a 500, every error of the one form."""
    tried = set()
    try:
        for url in dict.fromkeys((victim.url, victim.control)):
            schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
            for found in schema.get_all_operations():
                operation: Any = found.ok()  # type: ignore[union-attr]
                tried.add(operation.path)
                _every_case(operation, victim)
    finally:
        with penstock.connect(victim.url, control=victim.control, api_key=victim.coder) as ps:
            for sample in ("digits", "iris"):  # the documents' own example, and what others ask for after this
                if sample in {model["name"] for model in ps.models()}:
                    ps.load(sample)
    assert {"/v2/models/{model}/infer", "/api/v1/keys", "/api/v1/models/{model}/versions"} <= tried


def _every_case(operation: Any, victim: Target) -> None:
    headers = {"Authorization": f"Bearer {victim.coder}"}

    @seed(7)
    @settings(BOUNDED, max_examples=6)
    @given(case=operation.as_strategy())
    def answers(case: Any) -> None:
        answer = case.call(headers=headers, timeout=150)  # to unload a model takes its time
        assert answer.status_code < 500 or answer.status_code in (501, 503), answer.text
        if answer.status_code >= 400 and case.method != "HEAD":
            assert isinstance(answer.json()["error"], str), answer.text

    answers()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


def exchanged(target: Target, data: bytes) -> bytes:
    """What comes back for these bytes, once no more are sent."""
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as wire:
        received = b""
        with suppress(ConnectionError):
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
            while piece := wire.recv(1 << 16):
                received += piece
        return received


def request(target: Target) -> bytes:
    return post("/v2/models/echo/infer", json.dumps(VALID).encode(), f"X-API-Key: {target.key}")


PIECES = [b"\r\n", b"\n", b"\0", b": ", b"chunked", b"Content-Length: 9\r\n", b"HTTP/1.0", b"%", b"/..", b"\xff", b"{"]
EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 12), st.one_of(st.binary(max_size=12), st.sampled_from(PIECES))),
    max_size=4,
)


@seed(11)
@settings(BOUNDED, max_examples=500)
@given(edits=EDITS, more=st.binary(max_size=60))
@example(edits=[], more=b"")
def test_mangled_requests(victim: Target, edits: list[tuple[int, int, bytes]], more: bytes) -> None:
    """A good request with bytes changed, taken out or put in: well-formed answers, or none, and never a 500."""
    data = bytearray(request(victim))
    for at, out, into in edits:
        data[at : at + out] = into
    check(exchanged(victim, bytes(data) + more))


@seed(13)
@settings(BOUNDED, max_examples=400)
@given(data=st.binary(min_size=1, max_size=300))
def test_any_bytes_at_the_http_port(victim: Target, data: bytes) -> None:
    check(exchanged(victim, data))


@seed(17)
@settings(BOUNDED, max_examples=500)
@given(body=st.binary(max_size=200), length=st.one_of(st.none(), st.integers(0, 220)))
def test_any_body(victim: Target, http: httpx.Client, body: bytes, length: int | None) -> None:
    """At the infer route, as JSON, as binary data, and as a raw binary request."""
    headers = {"X-API-Key": victim.key} | ({} if length is None else {"Inference-Header-Content-Length": str(length)})
    answer = http.post(f"{victim.url}/v2/models/echo/infer", content=body, headers=headers)
    assert answer.status_code in (200, 400), answer.text
    assert answer.status_code == 200 or set(answer.json()) == {"error"}


@seed(19)
@settings(BOUNDED, max_examples=200)
@given(data=st.binary(max_size=300))
def test_any_bytes_at_the_grpc_port(victim: Target, data: bytes) -> None:
    """Behind HTTP/2's preface, as frames: the connection is closed or kept, the server stays."""
    host, _, port = victim.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire, suppress(ConnectionError):
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", len(data))[1:] + data)
        wire.shutdown(socket.SHUT_WR)
        while wire.recv(1 << 16):
            pass


async def test_the_server_is_still_there(victim: Target) -> None:
    await victim.healthy()


def check(received: bytes) -> None:
    assert not received or received.startswith(b"HTTP/1."), received[:80]
    assert not re.search(rb"HTTP/1\.1 5(?!03)", received), received  # a replica may be unheard for a moment
