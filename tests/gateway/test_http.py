"""The protocol: infer requests become exchanges, everything is answered in order, and nobody holds a connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from core.errors import NotFound, PenstockError, Unauthenticated
from core.settings import Settings
from gateway.exchange import Exchange, InferRequest, InferResponse
from gateway.http import Plant
from gateway.http_exchange import HttpExchange, infer_target
from tests.gateway.wire import Wire, post
from workers.messages import Output

INFER = "/v2/models/m/infer"


class Plane:
    """Stands in for the data plane: keeps exchanges until the test answers them, or answers at once."""

    def __init__(self) -> None:
        self.waiting: list[HttpExchange] = []
        self.cancelled: list[Exchange] = []
        self.at_once = True
        self.refusal: PenstockError | None = None
        self.refusals: list[tuple[str, str]] = []
        self.arrived = asyncio.Event()

    def route(self, exchange: Exchange) -> None:
        if self.refusal is not None:
            raise self.refusal

    def refused(self, exchange: Exchange, error: PenstockError) -> None:
        self.refusals.append((exchange.model, error.reason))

    def unread(self, error: PenstockError) -> None:
        self.refusals.append(("", error.reason))

    def infer(self, exchange: HttpExchange) -> None:
        if self.refusal is not None:
            exchange.fail(self.refusal)
            return
        self.waiting.append(exchange)
        self.arrived.set()
        if self.at_once:
            self.answer(exchange)

    def answer(self, exchange: HttpExchange) -> None:
        """The body comes back as a BYTES-free output, so a test sees what arrived."""
        self.waiting.remove(exchange)
        body = bytes(exchange.body)
        output = Output("y", "UINT8", (len(body),), body)
        exchange.reply(InferResponse(exchange.model, "1", [output], InferRequest([], binary_output=True)))

    def cancel(self, exchange: Exchange) -> None:
        self.cancelled.append(exchange)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path and the size of the body; `/early` without reading it."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/early":
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = f"{scope['method']} {scope['path']} {size}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Running:
    def __init__(self, plane: Plane, plant: Plant, server: uvicorn.Server, port: int) -> None:
        self.plane, self.plant, self.server, self.port = plane, plant, server, port
        self.wires: list[Wire] = []

    async def wire(self) -> Wire:
        self.wires.append(await Wire.to(self.port))
        return self.wires[-1]


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Running]:
    plane = Plane()
    plant = Plant(plane, Settings(**settings), lambda method, path: path == "/upload")  # type: ignore[arg-type]
    config = uvicorn.Config(app, port=0, http=plant.protocol, ws="none", log_config=None, lifespan="off")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    reaper = asyncio.create_task(plant.reap(0.05))
    running = Running(plane, plant, server, server.servers[0].sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        for wire in running.wires:
            await wire.close()
        reaper.cancel()
        server.force_exit = True
        await server.shutdown()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/v2/models/m/infer", ("m", "")),
        (b"/v2/models/m/versions/3/infer", ("m", "3")),
        (b"/v2/models/m/versions/champion/infer", ("m", "champion")),
        (b"/v2/models/a%2Fb/infer", ("a/b", "")),
        (b"/v2/models/m/versions//infer", None),
        (b"/v2/models/m/x/3/infer", None),
        (b"//v2/models/m/infer", None),
        (b"/V2/models/m/infer", None),
        (b"/v2/models/m/infer/", None),
        (b"/v2/models/infer", None),
    ],
)
def test_infer_paths(path: bytes, target: tuple[str, str] | None) -> None:
    """Only the two canonical paths are infer requests; a percent-encoded slash stays inside its name."""
    assert infer_target(path) == target


async def test_infer_and_asgi_on_one_connection() -> None:
    """Infer requests and others are answered in order on one kept-alive connection."""
    async with running() as server:
        wire = await server.wire()
        await wire.send(post(INFER, b"abc"))
        first = await wire.answer()
        assert first.status == 200
        assert first.body.endswith(b"abc")
        await wire.send(b"GET /docs?x=1 HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await wire.answer()).body == b"GET /docs 0"
        await wire.send(post(INFER, b"de"))
        assert (await wire.answer()).body.endswith(b"de")


async def test_pipelined_answers_keep_their_order() -> None:
    """Requests sent ahead, infer and ASGI mixed, are answered one by one in their order, also when the first waits."""
    async with running() as server:
        server.plane.at_once = False
        wire = await server.wire()
        get = b"GET /a HTTP/1.1\r\nHost: t\r\n\r\n"
        await wire.send(post(INFER, b"1") + get + post(INFER, b"2") + post("/b", b"xyz") + post(INFER, b"3"))
        got = []
        for is_infer in (True, False, True, False, True):
            if is_infer:
                async with asyncio.timeout(5):
                    while not server.plane.waiting:
                        await asyncio.sleep(0)
                (only,) = server.plane.waiting
                server.plane.answer(only)
            got.append((await wire.answer()).body[-1:])
        assert got == [b"1", b"0", b"2", b"3", b"3"]


async def test_equal_heads_are_parsed_once_and_mean_the_same() -> None:
    """A request whose head equals the last one is answered like it, and any difference is seen: the body, the length,
    a header, a request cut in two or followed by another."""
    async with running() as server:
        wire = await server.wire()
        for body in (b"aa", b"bb", b"cc"):
            await wire.send(post(INFER, body))
            assert (await wire.answer()).body.endswith(b'":2}}]}' + body)
        (connection,) = server.plant.connections
        assert connection.known is not None
        await wire.send(post(INFER, b"ddd"))
        assert (await wire.answer()).body.endswith(b"ddd")
        await wire.send(post("/v2/models/n/infer", b"eee"))
        assert b'"model_name":"n"' in (await wire.answer()).body
        await wire.send(post(INFER, b"fff") + post(INFER, b"ggg"))
        assert (await wire.answer()).body.endswith(b"fff")
        assert (await wire.answer()).body.endswith(b"ggg")
        for _ in range(2):
            whole = post(INFER, b"hhh")
            await wire.send(whole[:30])
            await asyncio.sleep(0.01)
            await wire.send(whole[30:])
            assert (await wire.answer()).body.endswith(b"hhh")
            assert connection.known is None
        await wire.send(b"GET /a HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await wire.answer()).body == b"GET /a 0"


async def test_half_a_head_is_never_remembered() -> None:
    """The end of a head and its body, sent once more, are no request."""
    async with running() as server:
        wire = await server.wire()
        whole = post(INFER, b"abc")
        await wire.send(whole[:30])
        await asyncio.sleep(0.01)
        await wire.send(whole[30:])
        assert (await wire.answer()).status == 200
        await wire.send(whole[30:])
        assert (await wire.answer()).status == 400
        assert await wire.closed()


async def test_body_in_pieces_and_chunked() -> None:
    """A body may come in any pieces, or chunked; trailers are dropped."""
    async with running() as server:
        wire = await server.wire()
        whole = post(INFER, b"0123456789" * 100)
        for at in range(0, len(whole), 97):
            await wire.send(whole[at : at + 97])
            await asyncio.sleep(0)
        assert (await wire.answer()).body.endswith(b"0123456789" * 100)
        await wire.send(
            f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Api-Key: late\r\n\r\n"
        )
        assert (await wire.answer()).body.endswith(b"abcde")


@pytest.mark.parametrize("cut", [1, 300, 100_000, 3_999_999])
async def test_a_large_body_is_read_in_place(cut: int) -> None:
    """A large body arrives whole wherever it is cut, and what follows it is understood."""
    body = bytes(range(256)) * 15_625
    async with running() as server:
        wire = await server.wire()
        for _ in range(2):
            whole = post(INFER, body)
            await wire.send(whole[:cut])
            await asyncio.sleep(0.02)
            await wire.send(whole[cut:])
            assert (await wire.answer()).body.endswith(body)
            await wire.send(post(INFER, b"small"))
            assert (await wire.answer()).body.endswith(b"small")
        await wire.send(post(INFER, body) + post(INFER, b"right behind"))
        assert (await wire.answer()).body.endswith(body)
        assert (await wire.answer()).body.endswith(b"right behind")


async def test_a_large_body_that_stops_coming() -> None:
    """A large body that is not whole in time is cut off; a client that goes meanwhile leaves nothing behind."""
    async with running(body_timeout_s=0.3) as server:
        wire = await server.wire()
        await wire.send(post(INFER, b"x" * 100_000, length=4_000_000))
        assert (await wire.answer()).status == 408
        assert await wire.closed()
        gone = await server.wire()
        await gone.send(post(INFER, b"x" * 100_000, length=4_000_000))
        await gone.close()
        async with asyncio.timeout(5):
            while server.plant.connections:
                await asyncio.sleep(0.01)


async def test_a_request_is_received_when_it_is_whole() -> None:
    """Its deadline and its times do not begin before the last of its body: that is the sender's time."""
    async with running() as server:
        server.plane.at_once = False
        wire = await server.wire()
        await wire.send(post(INFER, b"abc", length=6))
        await asyncio.sleep(0.05)
        almost = time.monotonic_ns()
        await wire.send(b"def")
        await server.plane.arrived.wait()
        assert server.plane.waiting[0].received > almost


async def test_expect_continue() -> None:
    """A client that waits for 100 Continue gets it, or the refusal before it has sent its body."""
    async with running() as server:
        wire = await server.wire()
        await wire.send(post(INFER, b"", "Expect: 100-continue", length=3))
        assert (await wire.answer()).status == 100
        await wire.send(b"abc")
        assert (await wire.answer()).status == 200
        server.plane.refusal = NotFound("unknown model 'm'")
        await wire.send(post(INFER, b"", "Expect: 100-continue", length=3))
        assert (await wire.answer()).status == 404


async def test_http_10_and_connection_close() -> None:
    """HTTP/1.0 and Connection: close end the connection after the answer, and the answer says so."""
    async with running() as server:
        for request in (
            f"POST {INFER} HTTP/1.0\r\nContent-Length: 1\r\n\r\nx".encode(),
            post(INFER, b"x", "Connection: close"),
        ):
            wire = await server.wire()
            await wire.send(request)
            answer = await wire.answer()
            assert answer.headers["connection"] == "close"
            assert await wire.closed()


async def test_upgrade_is_ignored() -> None:
    """A client that offers HTTP/2 by Upgrade (Java's does) is answered in HTTP/1.1."""
    async with running() as server:
        wire = await server.wire()
        await wire.send(post(INFER, b"x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"))
        assert (await wire.answer()).status == 200
        await wire.send(post(INFER, b"y"))
        assert (await wire.answer()).body.endswith(b"y")


SMUGGLED = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n\r\nS"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: +4",
        "Content-Length: 0x4",
        "Content-Length: -1",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: 4\nX: bare-line-feed",
        " folded: header",
        "X: a\x00b",
    ],
)
async def test_smuggling(headers: str) -> None:
    """CL.TE, TE.CL, duplicate and lying lengths, bare LF: one 400 and the end, never a second request."""
    async with running() as server:
        wire = await server.wire()
        await wire.send(f"POST {INFER} HTTP/1.1\r\nHost: t\r\n{headers}\r\n\r\n0\r\n\r\n{SMUGGLED}".encode("latin-1"))
        answer = await wire.answer()
        assert answer.status == 400
        assert answer.error
        assert await wire.closed()
        assert server.plane.waiting == []


async def test_pipelined_garbage_waits_its_turn() -> None:
    """A parse error behind a good request is answered after it, then the connection ends."""
    async with running() as server:
        server.plane.at_once = False
        wire = await server.wire()
        await wire.send(post(INFER, b"x") + b"NONSENSE\r\n\r\n")
        await server.plane.arrived.wait()
        server.plane.answer(server.plane.waiting[0])
        assert (await wire.answer()).status == 200
        assert (await wire.answer()).status == 400
        assert await wire.closed()


async def test_disconnect_cancels() -> None:
    """A client that goes away while its request waits is cancelled, and its answer goes nowhere."""
    async with running() as server:
        server.plane.at_once = False
        wire = await server.wire()
        await wire.send(post(INFER, b"x"))
        await server.plane.arrived.wait()
        await wire.close()
        async with asyncio.timeout(5):
            while not server.plane.cancelled:
                await asyncio.sleep(0.01)
        server.plane.answer(server.plane.waiting[0])
        assert not server.plant.connections


@pytest.mark.parametrize("start", [b"", b"POST /v2", b"POST /v2/models/m/infer HTTP/1.1\r\nX: 1\r\n"])
async def test_slow_loris_headers(start: bytes) -> None:
    """A silent or trickling client is closed when the header deadline has passed; a started request gets a 408."""
    async with running(header_timeout_s=0.2) as server:
        wire = await server.wire()
        await wire.send(start)
        trickle = asyncio.create_task(_trickle(wire, b"X" if start else b""))
        if start:
            assert (await wire.answer()).status == 408
        assert await wire.closed()
        trickle.cancel()


async def _trickle(wire: Wire, drop: bytes) -> None:
    while drop:
        await asyncio.sleep(0.02)
        try:
            await wire.send(drop)
        except ConnectionError:
            return


@pytest.mark.parametrize("path", [INFER, "/other"])
async def test_slow_body(path: str) -> None:
    """A body that trickles is cut off with a 408 when its deadline has passed, for infer and ASGI routes alike."""
    async with running(body_timeout_s=0.2) as server:
        wire = await server.wire()
        await wire.send(post(path, b"a", length=1000))
        trickle = asyncio.create_task(_trickle(wire, b"b"))
        assert (await wire.answer()).status == 408
        assert await wire.closed()
        trickle.cancel()


async def test_uploads_have_their_own_deadline() -> None:
    """A push is exempt from the body deadline and the body limit: it has its own."""
    async with running(body_timeout_s=0.1, max_body_bytes=10) as server:
        wire = await server.wire()
        await wire.send(post("/upload", b"a" * 50, length=100))
        await asyncio.sleep(0.3)
        await wire.send(b"a" * 50)
        assert (await wire.answer()).body == b"POST /upload 100"


async def test_idle_connections_are_closed() -> None:
    """A kept-alive connection without a request is closed after keep_alive_s."""
    async with running(keep_alive_s=0.2) as server:
        wire = await server.wire()
        await wire.send(post(INFER, b"x"))
        assert (await wire.answer()).status == 200
        assert await wire.closed()


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body(chunked: bool) -> None:
    """A body over the limit is refused with 413: at its headers where they tell, else where it crosses the limit."""
    async with running(max_body_bytes=1000) as server:
        wire = await server.wire()
        if chunked:
            await wire.send(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            await wire.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        else:
            await wire.send(post(INFER, b"", length=1 << 62))
        answer = await wire.answer()
        assert answer.status == 413
        assert "1000 bytes" in answer.error
        assert await wire.closed()


async def test_too_large_headers() -> None:
    """Headers over the limit are refused with 431, in one read or in many, and an endless line too."""
    async with running(max_header_bytes=2000) as server:
        for pieces in ([b"X: " + b"a" * 3000 + b"\r\n\r\n"], [b"X: "] + [b"a" * 500] * 10):
            wire = await server.wire()
            await wire.send(f"POST {INFER} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n".encode())
            for piece in pieces:
                await wire.send(piece)
                await asyncio.sleep(0.01)
            assert (await wire.answer()).status == 431
            assert await wire.closed()


async def test_refused_before_the_body() -> None:
    """Who is refused by headers alone need not send the body, and a large one is not stored."""
    async with running() as server:
        server.plane.refusal = Unauthenticated("no")
        wire = await server.wire()
        await wire.send(post(INFER, b"x" * 100, length=50_000_000))
        answer = await wire.answer()
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "bearer"
        assert await wire.closed()


async def test_what_the_protocol_refuses_is_counted() -> None:
    """Once each: infer requests, and those whose head could not be read."""
    settings = {"max_body_bytes": 1000, "max_header_bytes": 500, "body_timeout_s": 1.0, "header_timeout_s": 1.0}
    async with running(**settings) as server:
        slow = post(INFER, b"a", length=10)
        long = b"GET / HTTP/1.1\r\nHost: t\r\nX: %b" % (b"x" * 600)
        heads = (b"nonsense\r\n\r\n", long, long + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost")
        for request in (post(INFER, b"", length=2000), slow, post("/other", b"a", length=10), *heads):
            wire = await server.wire()
            await wire.send(request)
            assert (await wire.answer()).status >= 400
        wire = await server.wire()
        for piece in (b"GET / HTTP/1.1\r\nX: ", b"x" * 300, b"x" * 300):  # each in a read of its own
            await wire.send(piece)
            await asyncio.sleep(0.01)
        assert (await wire.answer()).status == 431
        server.plane.refusal = Unauthenticated("no")
        await (wire := await server.wire()).send(post(INFER, b"x", length=100))
        assert (await wire.answer()).status == 401
        asked = [("m", "too_large"), ("m", "slow_sender"), ("m", "unauthenticated")]
        unread = ["invalid_request", "headers_too_large", "headers_too_large", "slow_sender", "headers_too_large"]
        assert [each for each in server.plane.refusals if each[0]] == asked
        assert [reason for model, reason in server.plane.refusals if not model] == unread


async def test_an_answer_before_the_body_ends_the_connection() -> None:
    """And says so: the client does not try its next request there. One whose body had come stays."""
    async with running() as server:
        wire = await server.wire()
        await wire.send(post("/early", b"whole"))
        assert "connection" not in (await wire.answer()).headers
        await wire.send(post("/early", b"", length=100))
        answer = await wire.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (401, b"no", "close")
        await wire.send(b"x" * 100)
        assert await wire.closed()


async def test_who_asks_comes_before_how_much() -> None:
    """A stranger is told that they are one, also where the body would be too large."""
    async with running(max_body_bytes=10) as server:
        server.plane.refusal = Unauthenticated("no")
        for body, length in ((b"", 1 << 40), (b"x" * 100, 100)):
            wire = await server.wire()
            await wire.send(post(INFER, body, length=length))
            assert (await wire.answer()).status == 401


async def test_a_reader_that_never_reads_is_cut_off() -> None:
    """A client that asks and never takes its answers is cut off, and holds no more than a few of them in memory."""
    async with running(write_timeout_s=0.3) as server:
        wire = await server.wire()
        big = post(INFER, b"x" * 4_000_000)
        sender = asyncio.create_task(_send_quietly(wire, big * 20))
        async with asyncio.timeout(10):
            while not server.plant.connections:
                await asyncio.sleep(0.01)
            while server.plant.connections:
                await asyncio.sleep(0.02)
        sender.cancel()


async def _send_quietly(wire: Wire, data: bytes) -> None:
    try:
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await wire.send(data)
    except ConnectionError:
        pass


async def test_too_many_connections() -> None:
    """Beyond max_connections a client is told so and let go."""
    async with running(max_connections=1) as server:
        first = await server.wire()
        await first.send(post(INFER, b"x"))
        assert (await first.answer()).status == 200
        second = await server.wire()
        assert (await second.answer()).status == 503
        assert await second.closed()
        assert not server.plane.refusals  # it had not asked


async def test_shutdown_answers_what_is_here() -> None:
    """When the server stops, a waiting request still gets its answer, marked as the last."""
    async with running() as server:
        server.plane.at_once = False
        wire = await server.wire()
        await wire.send(post(INFER, b"x"))
        await server.plane.arrived.wait()
        for connection in list(server.plant.connections):
            connection.shutdown()
        server.plane.answer(server.plane.waiting[0])
        answer = await wire.answer()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert await wire.closed()


TRACEPARENT = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("path", [INFER, "/other"])
async def test_every_answer_names_its_request_and_its_trace(path: str) -> None:
    """Of the data plane, and of this protocol itself; those of the application are the guard's."""
    async with running() as here:
        wire = await here.wire()
        if path != INFER:
            here.plane.refusal = NotFound("no such model")
        await wire.send(post(INFER, b"{}", TRACEPARENT, "X-Request-Id: order-7"))
        answer = await wire.answer()
        assert (answer.headers["x-request-id"], answer.headers["x-trace-id"]) == ("order-7", TRACE)
        await wire.send(post(INFER, b"{}"))
        first = await wire.answer()
        assert first.headers["x-request-id"] == first.headers["x-trace-id"] != TRACE
        await wire.send(b"NONSENSE\r\n\r\n")
        refused = await wire.answer()
        assert refused.status == 400
        assert len(refused.headers["x-trace-id"]) == 32


async def test_equal_heads_have_traces_of_their_own() -> None:
    """A head that is not parsed again is still another request."""
    async with running() as here:
        wire = await here.wire()
        seen = set()
        for _ in range(5):
            await wire.send(post(INFER, b"{}"))
            seen.add((await wire.answer()).headers["x-trace-id"])
        assert len(seen) == 5


@pytest.mark.parametrize(
    "lines",
    [
        ["traceparent: 00-" + "g" * 32 + "-b7ad6b7169203331-01"],
        ["traceparent: " + "0" * 5000],
        [TRACEPARENT, "tracestate: " + "=" * 2000],
        ["baggage: " + "k=v," * 2000],
        ["X-Request-Id: " + "x" * 4000],
        ["X-Request-Id: a\tb"],
    ],
)
async def test_forged_trace_headers_are_dropped_and_never_fail_a_request(lines: list[str]) -> None:
    async with running() as here:
        wire = await here.wire()
        await wire.send(post(INFER, b"{}", *lines))
        answer = await wire.answer()
        assert answer.status == 200
        assert len(answer.headers["x-request-id"]) == 32
