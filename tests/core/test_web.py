"""The guard before every application of ours, the limits on what it lets through, and the one form of its errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, Depends, FastAPI, HTTPException, Request, WebSocket
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from core import errors
from core.errors import InvalidRequest, NotFound, NotReady, PenstockError, QueueFull
from core.identity import ADMIN, DEPLOY, PREDICT, Credential, Principal, Verifier, new_key
from core.status import status_of
from core.web import Guard, Nesting, allow_body, install_errors, principal, require

PUBLIC = frozenset({"/v2/health/live"})
KEY = new_key()
LOW = new_key()


def application() -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    install_errors(app)

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/whoami")
    async def whoami(who: Annotated[Principal, Depends(principal)]) -> dict[str, str]:
        return {"name": who.name}

    @app.post("/models/{model}/load")
    async def load(who: Annotated[Principal, Depends(require(DEPLOY))], model: str) -> dict[str, str]:
        return {"loaded": model}

    @app.post("/echo")
    async def echo(body: Annotated[dict[str, int | list[Any]], Body()]) -> int:
        return len(body)

    @app.post("/large")
    async def large(request: Request) -> int:
        allow_body(request, 1 << 24)
        return len(await request.body())

    @app.get("/raise/{what}")
    async def raising(what: str) -> None:
        raise RAISED[what]

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()

    return app


RAISED: dict[str, Exception] = {
    "not_found": NotFound("unknown model 'x'"),
    "later": NotReady("loading", retry_after=1.2),
    "full": QueueFull("full"),
    "at_once": QueueFull("full", retry_after=0.0),
    "internal": errors.ModelFailed("the model failed", error_id="abc"),
    "teapot": HTTPException(418, "short and stout", {"X-Tea": "yes"}),
    "defect": RuntimeError("/secret/path in class Secret"),
}


def guard() -> Guard:
    verifier = Verifier()
    verifier.replace(
        [
            Credential(Principal(KEY.key_id, "n", "o", ADMIN, ("a*",)), KEY.digest, 0.0),
            Credential(Principal(LOW.key_id, "low", "o", PREDICT), LOW.digest, 0.0),
        ]
    )
    return Guard(
        application(), verifier, PUBLIC, max_body=1000, max_depth=4, may_compress=lambda path: path == "/large"
    )


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(guard())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


BEARER = {"Authorization": f"Bearer {KEY.secret}"}


# --- who comes in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [BEARER, {"X-API-Key": KEY.secret}, {"authorization": f"bearer {KEY.secret}"}])
async def test_a_good_key_comes_in_by_either_header(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """And the route knows who it is."""
    answer = await client.get("/whoami", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"name": "n"})


async def asked(path: str, method: str = "GET", headers: tuple[tuple[bytes, bytes], ...] = ()) -> tuple[int, Any, Any]:
    """(status, headers, body) of a raw ASGI request: the path just as it is given, already decoded."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": headers,
        "server": ("test", 80),
        "client": ("test", 1),
        "http_version": "1.1",
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await guard()(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body) if body else None


CLOSED = [
    "/whoami",
    "/unknown",
    "/",
    "",
    "*",
    "/openapi.json",
    "/docs",
    "/v2/health/live/",
    "//v2/health/live",
    "/v2//health/live",
    "/V2/health/live",
    "/v2/health/LIVE",
    "/v2/health/./live",
    "/v2/health/live/../../../whoami",
    "/whoami/../v2/health/live",
    "/v2/health/live;x",
    "/v2/health/live\x00",
    "/v2/health/live ",
    "/v2/health/%6cive",
    "\\v2\\health\\live",
    "http://test/v2/health/live",
]


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "TRACE", "PROPFIND"])
async def test_without_a_credential_every_other_path_is_401(path: str, method: str) -> None:
    """Known or not, whatever its spelling, whatever the verb; the answer says how to come in."""
    status, headers, body = await asked(path, method)
    assert status == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    assert body is None or "credential is needed" in body["error"]


async def test_the_public_path_needs_none() -> None:
    """With a wrong credential it is public still; for reading only."""
    for method in ("HEAD", "OPTIONS", "POST", "DELETE", "get"):
        assert (await asked("/v2/health/live", method))[0] == 401
    for headers in ((), ((b"authorization", b"Bearer wrong"),)):
        status, _, body = await asked("/v2/health/live", headers=headers)
        assert (status, body) == (200, {"live": True})


@pytest.mark.parametrize(
    "headers",
    [
        ((b"authorization", b"Bearer psk_wrong"),),
        ((b"x-api-key", b"\xff\xfe"),),
        ((b"authorization", b"Basic " + KEY.secret.encode()),),
        ((b"cookie", b"key=" + KEY.secret.encode()),),
        ((b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer " + KEY.secret.encode())),
        ((b"authorization", b"Bearer wrong"), (b"x-api-key", KEY.secret.encode())),
    ],
)
async def test_a_bad_credential_is_401(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Also one that is followed by a good one: the first header counts."""
    status, _, body = await asked("/whoami", headers=headers)
    assert status == 401
    assert set(body) == {"error"}


async def test_a_websocket_without_a_credential_is_closed() -> None:
    """Before it is accepted, on any path, the public one too."""
    for path in ("/socket", "/v2/health/live"):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope: dict[str, Any] = {"type": "websocket", "path": path, "headers": [], "query_string": b"", "root_path": ""}
        await guard()(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_dependency_lets_nobody_in_where_no_guard_stands() -> None:
    """Deny by default, also where an application was put together wrongly."""
    transport = httpx.ASGITransport(application())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as bare:
        assert (await bare.get("/whoami", headers=BEARER)).status_code == 401


async def test_require_looks_at_the_model_first_then_at_the_role(client: httpx.AsyncClient) -> None:
    """404 outside the patterns, 403 for a role too low, else the route."""
    low = {"Authorization": f"Bearer {LOW.secret}"}
    assert (await client.post("/models/abc/load", headers=BEARER)).status_code == 200
    assert (await client.post("/models/b/load", headers=BEARER)).json() == {"error": "unknown model 'b'"}
    assert (await client.post("/models/b/load", headers=low)).status_code == 403


# --- what may be sent ---------------------------------------------------------------------------------------------


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


JSON = {**BEARER, "Content-Type": "application/json"}


async def test_a_body_within_the_limits_passes(client: httpx.AsyncClient) -> None:
    """Up to the last byte and level."""
    assert (await client.post("/echo", headers=JSON, content=b'{"a":1}' + b" " * 993)).json() == 1
    assert (await client.post("/echo", headers=JSON, content=b'{"a":[[[1]]]}')).json() == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_too_large_is_413(client: httpx.AsyncClient, chunked: bool) -> None:
    """By its declared length before a byte is read, by its count otherwise."""
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 100

    headers = JSON if chunked else {**JSON, "Content-Length": "10000"}
    answer = await client.post("/echo", headers=headers, content=pieces())
    assert (answer.status_code, answer.json()) == (413, {"error": "the body exceeds 1000 bytes"})
    assert read == (11 if chunked else 0)


async def test_a_body_nested_too_deeply_is_400(client: httpx.AsyncClient) -> None:
    """Before any parser recurses."""
    for body in (b'{"a":[[[[1]]]]}', b'{"a":' * 100, b"[" * 999):
        answer = await client.post("/echo", headers=JSON, content=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "the body is nested more than 4 levels deep")


async def test_a_route_may_allow_more_for_itself(client: httpx.AsyncClient) -> None:
    """Of anything, nested or not."""
    assert (await client.post("/large", headers=BEARER, content=b"[" * 100_000)).json() == 100_000


def depth_of(document: Any) -> int:
    if isinstance(document, dict):
        return 1 + max(map(depth_of, document.values()), default=0)
    return 1 + max(map(depth_of, document), default=0) if isinstance(document, list) else 0


DOCUMENTS = st.recursive(
    st.integers() | st.text(alphabet='"\\[]{}a', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[{', max_size=3), inner, max_size=3)
    ),
)


@given(DOCUMENTS, st.integers(1, 4), st.integers(1, 6))
def test_nesting_is_counted_exactly_however_the_bytes_are_cut(document: Any, limit: int, size: int) -> None:
    """Brackets inside strings, escaped quotes, cuts anywhere: refused if and only if it is deeper than the limit."""
    text, nesting = json.dumps(document).encode(), Nesting(limit)
    try:
        for at in range(0, len(text), size):
            nesting.feed(text[at : at + size])
        refused = False
    except InvalidRequest:
        refused = True
    assert refused == (depth_of(document) > limit)


# --- how errors look ----------------------------------------------------------------------------------------------


async def test_every_error_of_the_domain_has_its_status_and_the_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the one table, all of them."""
    transport = httpx.ASGITransport(guard())
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=BEARER) as client:
        for kind in errors.leaves():
            monkeypatch.setitem(RAISED, "each", kind("why"))
            answer = await client.get("/raise/each")
            assert answer.status_code == status_of(kind("")).http
            assert answer.json() == {"error": "why"}
            assert ("retry-after" in answer.headers) == (kind.retry_after is not None)


@pytest.mark.parametrize(
    ("what", "status", "body", "headers"),
    [
        ("later", 503, {"error": "loading"}, {"retry-after": "2"}),
        ("full", 503, {"error": "full"}, {"retry-after": "1"}),
        ("at_once", 503, {"error": "full"}, {"retry-after": "1"}),
        ("internal", 500, {"error": "the model failed", "error_id": "abc"}, {}),
        ("teapot", 418, {"error": "short and stout"}, {"x-tea": "yes"}),
    ],
)
async def test_errors_keep_what_belongs_to_them(
    client: httpx.AsyncClient, what: str, status: int, body: dict[str, str], headers: dict[str, str]
) -> None:
    """Retry-After in whole seconds, rounded up; error ids; headers."""
    answer = await client.get(f"/raise/{what}", headers=BEARER)
    assert (answer.status_code, answer.json()) == (status, body)
    assert headers.items() <= dict(answer.headers).items()


async def test_unknown_paths_and_verbs_have_the_one_form(client: httpx.AsyncClient) -> None:
    """404, and 405 with the verbs that there are."""
    answer = await client.get("/unknown", headers=BEARER)
    assert (answer.status_code, set(answer.json())) == (404, {"error"})
    answer = await client.delete("/whoami", headers=BEARER)
    assert (answer.status_code, answer.headers["allow"], set(answer.json())) == (405, "GET", {"error"})


@pytest.mark.parametrize(
    ("content", "place"),
    [(b'{"a": "x"}', "a"), (b"{", "body[1]: JSON decode error"), (b"[]", "body: "), (b"", "body: "), (b"\xff", "body")],
)
async def test_a_body_that_does_not_fit_is_400_and_names_the_place(
    client: httpx.AsyncClient, content: bytes, place: str
) -> None:
    """FastAPI's 422 does not exist."""
    answer = await client.post("/echo", headers=JSON, content=content)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert place in answer.json()["error"] or content == b"\xff"


async def test_a_defect_is_500_and_tells_nothing_but_an_id(client: httpx.AsyncClient) -> None:
    """The details stand in the log under that id, once."""
    with capture_logs() as logs:
        answer = await client.get("/raise/defect", headers=BEARER)
    assert answer.status_code == 500
    assert set(answer.json()) == {"error", "error_id"}
    assert "ecret" not in answer.text
    (line,) = [line for line in logs if line["event"] == "request_failed"]
    assert line["error_id"] == answer.json()["error_id"]
    assert "Secret" in repr(line["exc_info"])


async def test_what_escapes_an_application_is_answered_by_the_guard() -> None:
    """Even one without handlers."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RAISED["full"] if scope["path"] == "/full" else RuntimeError("broken")

    verifier = Verifier()
    paths = frozenset({"/plain", "/full"})
    client = httpx.AsyncClient(transport=httpx.ASGITransport(Guard(broken, verifier, paths)), base_url="http://test")
    async with client:
        assert (await client.get("/plain")).status_code == 500
        assert (await client.get("/full")).status_code == 503


async def test_an_answer_that_breaks_off_is_logged_and_not_answered_twice() -> None:
    """The server closes the connection: a client never takes half an answer for a whole one."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broken")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/begun", "headers": []}
    with capture_logs() as logs:
        await Guard(broken, Verifier(), frozenset({"/begun"}))(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert [line["event"] for line in logs] == ["request_failed"]


def test_errors_of_the_domain_are_what_is_tried() -> None:
    """The loop above runs over all of them."""
    assert len(errors.leaves()) > 15
    assert all(issubclass(kind, PenstockError) for kind in errors.leaves())


# --- media types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-pickle"},
        {"Content-Type": "application/Python-Pickle; v=5"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "identity, br"},
    ],
)
async def test_pickles_and_compressed_bodies_are_415(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """On every path, known or not; who asks still comes first."""
    for path in ("/echo", "/nowhere"):
        answer = await client.post(path, headers={**BEARER, **headers}, content=b"{}")
        assert (answer.status_code, set(answer.json())) == (415, {"error"})
        assert (await client.post(path, headers=headers, content=b"{}")).status_code == 401


async def test_a_body_may_be_compressed_where_its_path_says_so(client: httpx.AsyncClient) -> None:
    """`identity` is no compression; a pickle is refused there too."""
    for path, encoding in (("/large", "gzip"), ("/echo", "identity")):
        headers = {**BEARER, "Content-Type": "application/json", "Content-Encoding": encoding}
        assert (await client.post(path, headers=headers, content=b"{}")).status_code == 200
    answer = await client.post("/large", headers={**BEARER, "Content-Type": "x/pickle"}, content=b"{}")
    assert answer.status_code == 415


@pytest.mark.parametrize(("path", "status"), [("/v2/health/live", 200), ("/none", 401)])
async def test_every_answer_names_its_request_and_its_trace(client: httpx.AsyncClient, path: str, status: int) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    given = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "order-7"}
    answer = await client.get(path, headers=given)
    assert answer.status_code == status
    assert (answer.headers["x-request-id"], answer.headers["x-trace-id"]) == ("order-7", trace_id)
    forged = await client.get(path, headers={"traceparent": "0" * 4000, "x-request-id": "two words"})
    assert forged.headers["x-request-id"] == forged.headers["x-trace-id"] != trace_id
