"""What happens around a call: errors, retries, redirects, and where the key goes."""

from __future__ import annotations

import asyncio
import inspect
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import penstock
import pytest
from penstock import calls, errors
from penstock.calls import Answer
from penstock.config import read
from penstock.transport import RetryBudget, failure_of, is_encrypted

from tests.client.fake import FakeModel, FakeServer, Scripted, fake_server

BUSY = Scripted(503, {"error": "the queue is full"}, {"Retry-After": "0"})
ROWS = {"name": "x", "datatype": "FP32", "shape": [-1]}


@pytest.mark.parametrize(
    ("status", "kind"), [*errors.BY_STATUS.items(), (405, errors.ServerError), (418, errors.ServerError)]
)
def test_each_status_has_its_error(ps: Any, server: FakeServer, status: int, kind: type[errors.PenstockError]) -> None:
    """The message, the error id and Retry-After come along."""
    body = {"error": "so it is", "error_id": "e7"}
    server.answers("PUT /api/v1/models/m/aliases/a", Scripted(status, body, {"Retry-After": "2.5"}))
    with pytest.raises(kind, match="so it is") as caught:
        ps.alias("m", "a", 1)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.error_id, error.retry_after) == (status, "e7", 2.5)


def test_every_leaf_of_the_tree_is_reachable() -> None:
    """Each server error stands in the table once, and is drawn in the tree."""
    leaves = errors.ServerError.__subclasses__()
    assert sorted(kind.__name__ for kind in leaves) == sorted(kind.__name__ for kind in errors.BY_STATUS.values())
    for kind in [*leaves, *errors.PenstockError.__subclasses__()]:
        assert f"─ {kind.__name__} " in f"{errors.__doc__} "


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"error": 3}', b"\xff"])
def test_an_error_without_a_sentence_gets_one(ps: Any, server: FakeServer, body: bytes) -> None:
    """Whatever stands between client and server may answer."""
    server.answers("GET /api/v1/models", Scripted(502, body))
    with pytest.raises(errors.ServerError, match="answered with status 502"):
        ps.models()


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"models": 3}'])
def test_an_answer_of_something_else_is_said_to_be(ps: Any, server: FakeServer, body: bytes) -> None:
    """A proxy's page with status 200 is no answer of ours."""
    server.answers("GET /api/v1/models", Scripted(200, body))
    with pytest.raises(errors.UnexpectedAnswer, match="is this the address of a Penstock server"):
        ps.models()


# --- retries ---


def test_reads_are_tried_once_more(ps: Any, server: FakeServer) -> None:
    """503 with Retry-After, then an answer: the caller sees the answer."""
    server.answers("GET /api/v1/models", BUSY)
    assert ps.models()[0]["name"] == "digits"
    assert len(server.requests) == 2


def test_inferences_are_tried_once_more(ps: Any, server: FakeServer) -> None:
    """They change nothing, so sending one twice does no harm."""
    server.models["m"] = FakeModel([ROWS], lambda inputs: {"y": inputs["x"]})
    server.answers("POST /v2/models/m/infer", BUSY)
    assert ps.predict("m", [1.0]).tolist() == [1.0]


def test_one_retry_is_all(ps: Any, server: FakeServer) -> None:
    """The second 503 is the answer."""
    server.answers("GET /api/v1/models", BUSY, BUSY, BUSY)
    with pytest.raises(errors.Unavailable, match="queue is full"):
        ps.models()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Scripted(503, {"error": "no"}),
        Scripted(500, {"error": "no"}, {"Retry-After": "0"}),
        Scripted(429, {}, {"Retry-After": "0"}),
    ],
)
def test_nothing_else_is_tried_again(ps: Any, server: FakeServer, answer: Scripted) -> None:
    """Neither 503 without Retry-After, nor any other status."""
    server.answers("GET /api/v1/models", answer)
    with pytest.raises(errors.ServerError):
        ps.models()
    assert len(server.requests) == 1


def test_writes_are_never_tried_again(ps: Any, server: FakeServer) -> None:
    """Whether the first one took effect is not known."""
    writes: list[tuple[str, Callable[[], Any]]] = [
        ("POST /api/v1/models/m/load", lambda: ps.load("m")),
        ("PUT /api/v1/models/m/aliases/a", lambda: ps.alias("m", "a", 1)),
        ("DELETE /api/v1/models/m", lambda: ps.delete("m")),
        ("POST /api/v1/keys", lambda: ps.keys.create("k")),
    ]
    for line, act in writes:
        server.answers(line, BUSY)
        with pytest.raises(errors.Unavailable):
            act()
        assert len(server.asked(line)) == 1


def test_a_retry_must_fit_the_time_left(ps: Any, server: FakeServer) -> None:
    """Retry-After beyond the timeout: the refusal comes at once."""
    server.models["m"] = FakeModel([ROWS], lambda inputs: {"y": inputs["x"]})
    server.answers("POST /v2/models/m/infer", Scripted(503, {"error": "later"}, {"Retry-After": "30"}))
    began = time.monotonic()
    with pytest.raises(errors.Unavailable, match="later"):
        ps.predict("m", [1.0], timeout=5)
    assert time.monotonic() - began < 4


def test_a_long_retry_after_is_the_callers_to_wait_for(ps: Any, server: FakeServer) -> None:
    """Nobody is held up for half a minute unasked."""
    server.answers("GET /api/v1/models", Scripted(503, {"error": "later"}, {"Retry-After": "30"}))
    began = time.monotonic()
    with pytest.raises(errors.Unavailable) as caught:
        ps.models()
    assert time.monotonic() - began < 4
    assert caught.value.retry_after == 30


def test_the_retry_budget_is_a_tenth() -> None:
    """However many calls meet 503, retries stay within a tenth of them (and the one there from the start)."""
    budget = RetryBudget()
    answer = Answer(503, {"retry-after": "0"}, b"")
    retries = 0
    for _ in range(1000):
        budget.earn()
        retries += budget.wait(calls.models(), answer, 10.0) is not None
    assert 90 <= retries <= 101


def test_the_retry_budget_does_not_pile_up() -> None:
    """A quiet day does not earn a storm."""
    budget = RetryBudget()
    for _ in range(1000):
        budget.earn()
    assert budget.allowance == 10.0


# --- where the key goes ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(ps: Any, server: FakeServer, status: int) -> None:
    """The key stays with the server it was meant for."""
    with fake_server() as other:
        server.answers("GET /api/v1/models", Scripted(status, b"", {"Location": f"{other.url}/api/v1/models"}))
        with pytest.raises(errors.UnexpectedAnswer, match="redirects elsewhere"):
            ps.models()
        assert other.requests == []


def test_the_files_key_never_meets_another_server(
    home: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PENSTOCK_URL alone points elsewhere: nothing is sent there, and the error says what to set."""
    with fake_server() as meant:
        (home / "client.toml").write_text(f'url = "{meant.url}"\napi_key = "psk_secret"\n')
        monkeypatch.setenv("PENSTOCK_URL", server.url)
        with penstock.connect() as ps:
            with pytest.raises(errors.NotConfigured, match="is meant for"):
                ps.predict("m", [1.0])
            with pytest.raises(errors.NotConfigured, match="set PENSTOCK_API_KEY"):
                ps.models()
            assert ps.ready()
    assert [request.path for request in server.requests] == ["/v2/health/ready"]
    assert not any("psk_secret" in str(request) for request in server.requests)


def test_readiness_is_asked_without_a_key(ps: Any, server: FakeServer) -> None:
    """It needs none, so it gets none."""
    assert ps.ready()
    assert "authorization" not in server.requests[-1].headers


def test_proxies_see_no_keys(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment would read a key that goes by plain http: it is not used."""
    with fake_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        with penstock.connect(server.url, api_key=server.key) as ps:
            ps.models()
        assert proxy.requests == []
    assert is_encrypted(read("https://a", "k"))
    assert not is_encrypted(read("https://a", "k", "http://b"))


def test_keys_appear_in_no_text(ps: Any, server: FakeServer) -> None:
    """Neither in the client's repr nor in an error's text."""
    server.key = "psk_other"
    with pytest.raises(errors.Unauthenticated) as caught:
        ps.models()
    assert "psk_" not in f"{ps!r}{caught.value!r}{caught.value}"


# --- no answer ---


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_nobody_there() -> None:
    """A refused connection is a sentence with the address; `ready` is just False."""
    url = f"http://127.0.0.1:{closed_port()}"
    with penstock.connect(url, api_key="k") as ps:
        with pytest.raises(errors.NoAnswer, match=f"{url} cannot be reached"):
            ps.models()
        assert not ps.ready()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectTimeout("x"), errors.NoAnswer),
        (httpx.ReadTimeout("x"), errors.NoAnswer),
        (TimeoutError(), errors.NoAnswer),
        (httpx.RemoteProtocolError("x"), errors.NoAnswer),
        (httpx.DecodingError("x"), errors.UnexpectedAnswer),
    ],
)
def test_failures_of_the_connection_are_ours(error: Exception, kind: type[errors.PenstockError]) -> None:
    """No error of the HTTP library reaches the caller."""
    assert type(failure_of(error, "http://h")) is kind


# --- the twins ---


def test_the_clients_have_the_same_verbs() -> None:
    """Every public method of one is one of the other, with the same parameters."""
    for one, other in ((penstock.Client, penstock.AsyncClient), (penstock.client.Keys, penstock.aio.AsyncKeys)):
        assert verbs(one) == verbs(other)


def verbs(kind: type) -> dict[str, list[str]]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: [str(p) for p in inspect.signature(verb).parameters.values()] for name, verb in found if name[0] != "_"
    }


async def test_the_async_client_asks_many_things_at_once(server: FakeServer) -> None:
    """Its calls overlap, and each gets its own answer."""
    server.models["m"] = FakeModel([ROWS], lambda inputs: {"y": inputs["x"]})
    async with penstock.connect_async(server.url, api_key=server.key) as ps:
        found = await asyncio.gather(*(ps.predict("m", np.array([float(n)])) for n in range(20)))
    assert [array.tolist() for array in found] == [[float(n)] for n in range(20)]
