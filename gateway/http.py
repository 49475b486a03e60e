"""uvicorn's HTTP protocol, subclassed: limits, deadlines, and infer requests that never become ASGI.

Theory. httptools parses; one `Turn` (`gateway/http_turn.py`) stands for each request of a connection, in the order of
arrival. A POST to an infer path collects its body and becomes an `HttpExchange` for the data plane, which answers by a
plain call; any other request becomes uvicorn's own ASGI cycle. Only the first turn is ever worked on: what a client
pipelines behind it waits, parsed as far as it came in the same read, and beyond `max_pipelined` turns reading stops.
Until then reading goes on, since a disconnect is only seen by reading.

Deadlines cost nothing per request: `Plant.reap` looks at every connection once a second and closes those that are late
(headers, body, keep-alive, a client that takes no byte of its answer). A request that arrives in one read is never
late.

A client that keeps its connection sends the same head over and over. A read that begins with the bytes of the last
head, and is as long as that request was, is the same request with another body: it is not parsed again.

What not to do: do not write an answer for any turn but the first; do not close a connection with an unread body
before the client has had time to read the answer (the kernel would reset it): linger.

Smuggling: llhttp refuses Transfer-Encoding beside Content-Length, duplicate lengths and bare line feeds; after any
parse error nothing more of the connection is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from core.datatypes import Buffer
from core.errors import (
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    PenstockError,
    SlowSender,
    TooLarge,
    Unavailable,
)
from core.settings import Settings
from core.trace import NOBODY
from gateway.codec import rest
from gateway.http_body import DIRECT_FROM, BodyReader, listen
from gateway.http_exchange import HttpExchange, InferHead, ids, infer_target, render_error
from gateway.http_turn import Cycle, Known, Turn, parse_target

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.dataplane import DataPlane

LENGTH = b"content-length: %d\r\n\r\n"
LINGER_S = 2.0
"""How long an answer to a request whose body was not read is given to reach the client."""
JOIN_UP_TO = 1 << 16
"""Answers up to this many bytes are joined into one write; longer ones are written part by part, without a copy."""


class Plant:
    """What all connections of a server share."""

    def __init__(self, plane: DataPlane, settings: Settings, uploads: Callable[[str, str], bool]) -> None:
        """`uploads(method, path)`: requests whose body has limits and deadlines of its own (a push)."""
        self.plane = plane
        self.settings = settings
        self.uploads = uploads
        self.limits = rest.Limits(settings.max_decoded_bytes, settings.max_tensors)
        self.connections: set[Protocol] = set()
        self.left_at = -math.inf
        """When the last connection so far was closed, in monotonic seconds."""
        self.draining = False

    def drain(self) -> None:
        """From now on every answer is its connection's last; who is idle may still ask once."""
        self.draining = True
        for connection in self.connections:
            connection.last_answers()

    def protocol(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **kwargs: Any) -> Protocol:
        """What uvicorn calls for each connection (`http=`)."""
        return Protocol(self, config=config, server_state=server_state, app_state=app_state, **kwargs)

    async def reap(self, period_s: float = 1.0) -> None:
        """Close what is late, for ever."""
        while True:
            await asyncio.sleep(period_s)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.reap(now)


NONE, HEAD, BODY, IDLE, LINGER = range(5)
"""What a connection's deadline is for."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, plant: Plant, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plant = plant
        self.settings = plant.settings
        self.limits = plant.limits
        # the request being received: its head while `head_open`, then its body while `receiving`
        self.head_open = False
        self.head_bytes = 0
        self.read_bytes = 0
        self.receiving: Turn | None = None
        self.is_upload = False
        self.reader: BodyReader | None = None
        """Takes in a large body in this protocol's place."""
        # the last request's head, and the request that a read has begun and ended
        self.known: Known | None = None
        self.whole: Turn | None = None
        self.begun = False
        # requests in order of arrival; the first is the one being served
        self.turns: deque[Turn] = deque()
        self.waiting_bytes = 0
        self.pumping = False
        # deadline in monotonic seconds, and what for
        self.phase = NONE
        self.deadline = 0.0
        # a client that does not take its answer: bytes left at the last look, and since when no fewer
        self.unsent = 0
        self.unsent_since = 0.0
        # how the connection ends
        self.deaf = False
        """Nothing more is parsed: what still comes is thrown away."""
        self.stopping = plant.draining
        """The next answer is the last."""

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.connections.add(self)
        self.plant.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.server = get_local_addr(transport)
        self.client = get_remote_addr(transport)
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._expect(HEAD, self.settings.header_timeout_s)
        if len(self.plant.connections) > self.settings.max_connections:
            self._refuse(Unavailable("the server has too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.plant.connections.discard(self)
        self.plant.left_at = time.monotonic()
        self.deaf = True
        turns, self.turns = self.turns, deque()
        for turn in turns:
            self._abandon(turn)
        self.flow.resume_writing()
        self.receiving = self.reader = None
        self.parser = None  # type: ignore[assignment]

    def _abandon(self, turn: Turn) -> None:
        """The client has gone, or will not be heard any more: what works on the request is told so."""
        if turn.exchange is not None:
            self.plant.plane.cancel(turn.exchange)
            turn.exchange = None
        if turn.cycle is not None:
            turn.cycle.disconnected = True
            turn.cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        known = self.known
        if known is not None:
            if len(data) == known.whole and data.startswith(known.raw) and not (self.turns or self.flow.write_paused):
                self._again(known, data)
                return
            self.known = None
        self.begun = False
        self.read_bytes = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("malformed HTTP request"))
            return
        if self.deaf:
            return
        if self.head_open:
            self._head_half_received()
        elif self.receiving is not None:
            self._body_half_received(self.receiving)
        else:
            self.phase = NONE
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keep the head of a read that was one whole infer request, for the next like it."""
        turn = self.whole
        self.whole = None
        if (
            turn is None
            or turn.head is None
            or not self.begun
            or not turn.length
            or not turn.keep_alive
            or turn.expects
        ):
            return
        end = len(data) - turn.length
        if data.find(b"\r\n\r\n") + 4 == end:
            self.known = Known(data[:end], len(data), turn.head)

    def _again(self, known: Known, data: bytes) -> None:
        """A head equal byte for byte to the last one means the same: it need not be parsed again."""
        self.phase = NONE
        turn = Turn(not self.stopping, False)
        turn.exchange = HttpExchange(self, known.head)
        turn.exchange.body = data[len(known.raw) :]
        turn.complete = turn.started = True
        self.turns.append(turn)
        self.plant.plane.infer(turn.exchange)

    def _feed(self, data: bytes) -> None:
        """An Upgrade header is ignored, as RFC 9110 7.8 allows: the request is answered as what it is. What would
        turn the connection into a tunnel all the same (CONNECT) is refused."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
            if self.parser.get_method() == b"CONNECT":
                self._refuse(MethodNotAllowed("CONNECT is not offered"))
                return
            data = self._without_upgrade() + rest

    def _without_upgrade(self) -> bytes:
        """The head just parsed, to be parsed again without its Upgrade: httptools would take its body for another
        protocol's bytes."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip().lower() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token in (b"close", b"keep-alive"))
            if name != b"upgrade" and (name != b"connection" or value):
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _head_half_received(self) -> None:
        self.head_bytes += self.read_bytes
        if self.head_bytes > self.settings.max_header_bytes:
            self._refuse(HeadersTooLarge("the request line and headers are too large"))
        elif self.phase != HEAD:
            self._expect(HEAD, self.settings.header_timeout_s)

    def _body_half_received(self, turn: Turn) -> None:
        """A body on its way: refuse it now where its headers already say so, else let it come, within its time."""
        if turn.exchange is not None and not turn.checked and turn.error is None:
            turn.checked = True
            turn.error = self._refusal(turn.exchange)
        if turn.error is not None:
            self._refuse(turn.error)
            return
        if turn.expects and turn.exchange is not None and turn is self.turns[0]:
            turn.expects = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.is_upload:
            self.phase = NONE
            return
        if self.phase != BODY:
            self._expect(BODY, self.settings.body_timeout_s)
        if turn.exchange is not None and turn.length - turn.size >= DIRECT_FROM and turn is self.turns[0]:
            self.reader = BodyReader(self, turn.body, turn.length)
            listen(self.transport, self.reader)

    def _refusal(self, exchange: HttpExchange) -> PenstockError | None:
        """Why a request need not be received: what its headers say of who asks for which model."""
        try:
            self.plant.plane.route(exchange)
        except PenstockError as error:
            return error
        return None

    def body_received(self, body: memoryview) -> None:
        """The body that a reader took in is whole. The parser, left in the middle of it, is replaced."""
        self._stop_reader()
        self.parser = httptools.HttpRequestParser(self)
        turn = self.receiving
        self.receiving = None
        self.phase = NONE
        if turn is not None:
            turn.body = body
            turn.complete = True
            self._pump()

    def _stop_reader(self) -> None:
        if self.reader is not None:
            self.reader = None
            listen(self.transport, self)

    def shutdown(self) -> None:
        """The server stops: answer what is here, then close."""
        self.last_answers()
        if not self.turns:
            self.transport.close()

    def last_answers(self) -> None:
        """Answer what is here, or what comes next, with `Connection: close`."""
        self.stopping = True
        for turn in self.turns:
            turn.keep_alive = False
            if turn.cycle is not None:
                turn.cycle.keep_alive = False

    # --- deadlines

    def _expect(self, phase: int, seconds: float) -> None:
        self.phase = phase
        self.deadline = time.monotonic() + seconds  # uvloop's own time stands still while it is busy

    def reap(self, now: float) -> None:
        """Called about once a second: close the connection if it is late."""
        if self.flow.write_paused and self._write_stalled(now):
            self.transport.abort()
        elif self.phase == NONE:
            if not self.turns:
                self._expect(IDLE, self.settings.keep_alive_s)
        elif self.flow.read_paused and self.phase in (HEAD, BODY):
            self.deadline = max(self.deadline, now + 1.0)
        elif now >= self.deadline:
            self._late()

    def _write_stalled(self, now: float) -> bool:
        """Whether the client has taken no byte of its answer for `write_timeout_s`."""
        unsent = self.transport.get_write_buffer_size()
        if unsent < self.unsent or not self.unsent:
            self.unsent_since = now
        self.unsent = unsent
        return now - self.unsent_since >= self.settings.write_timeout_s

    def _late(self) -> None:
        if self.phase == BODY:
            self._refuse(SlowSender(f"the body did not arrive within {self.settings.body_timeout_s:g} s"))
        elif self.phase == HEAD and self.head_open:
            self._refuse(SlowSender(f"the headers did not arrive within {self.settings.header_timeout_s:g} s"))
        elif self.phase == LINGER:
            self.transport.abort()
        else:
            self.transport.close()

    # --- parser callbacks

    def on_message_begin(self) -> None:
        self.begun = True
        self.url = b""
        self.headers = []
        self.head_open = True
        self.head_bytes = 0
        self.expect_100_continue = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_open:  # not a trailer: those are dropped
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        if parser.should_upgrade():
            return
        self.head_open = False
        self.phase = NONE
        fields = dict(reversed(self.headers))
        turn = Turn(
            parser.should_keep_alive() and not self.stopping, fields.get(b"expect", b"").lower() == b"100-continue"
        )
        turn.length = int(fields.get(b"content-length", b"0"))
        self.receiving = turn
        self.turns.append(turn)
        self.is_upload = False
        method = parser.get_method()
        target = infer_target(self.url.partition(b"?")[0]) if method == b"POST" else None
        if self.head_bytes + self.read_bytes > self.settings.max_header_bytes and self._head_too_large():
            turn.error = HeadersTooLarge("the request line and headers are too large")
            turn.keep_alive = False
            self.plant.plane.unread(turn.error)
        elif target is not None:
            turn.head = InferHead(target, fields)
            turn.exchange = HttpExchange(self, turn.head)
        else:
            self._asgi(turn, method)
        if turn.exchange is not None and turn.length > self.settings.max_body_bytes:
            turn.error = self._refusal(turn.exchange) or self._too_large()
        if turn.cycle is not None and turn.error is None:
            self._pump()

    def _head_too_large(self) -> bool:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return size > self.settings.max_header_bytes

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.settings.max_body_bytes} bytes")

    def on_body(self, body: bytes) -> None:
        turn = self.receiving
        if turn is None or turn.error is not None:
            return
        if turn.cycle is not None:
            self._asgi_body(turn.cycle, body)
            return
        turn.add(body)
        if turn.size > self.settings.max_body_bytes:
            turn.error = self._too_large()
            turn.body = b""
        if len(self.turns) > 1:
            self.waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        turn = self.receiving
        self.receiving = None
        if turn is None:
            return
        turn.complete = True
        self.whole = turn if turn.head is not None and turn.size == turn.length else None
        if turn.cycle is not None:
            turn.cycle.more_body = False
            turn.cycle.message_event.set()
        if len(self.turns) > 1 and (len(self.turns) > self.settings.max_pipelined or self.waiting_bytes > JOIN_UP_TO):
            self.flow.pause_reading()
        self._pump()

    # --- turns

    def _pump(self) -> None:
        """Start the first turn, and the next as long as they are answered at once."""
        if self.pumping:
            return
        self.pumping = True
        try:
            while self.turns and not self.flow.write_paused and self._start(self.turns[0]):
                pass
        finally:
            self.pumping = False

    def _start(self, turn: Turn) -> bool:
        if turn.started or not (turn.complete or turn.cycle is not None):
            return False
        turn.started = True
        if turn.error is not None:
            self._fail(turn, turn.error)
        elif turn.exchange is not None:
            turn.exchange.body, turn.body = turn.body, b""
            if turn.checked:
                turn.exchange.received = time.monotonic_ns()  # its times are ours, not those of who sent it slowly
            self.plant.plane.infer(turn.exchange)
        elif turn.cycle is not None:
            self._start_asgi_task(turn.cycle, self.app)
        return True

    def answer(self, exchange: HttpExchange, status: int, headers: bytes, parts: list[Buffer]) -> None:
        """Write the answer to the exchange whose turn it is; nothing where its client has gone."""
        if self.turns and self.turns[0].exchange is exchange:
            self._write(self.turns[0], status, headers, parts)

    def _fail(self, turn: Turn, error: PenstockError) -> None:
        status, headers, body = render_error(error)
        if turn.head is None:
            named = ids(NOBODY.new_trace(), NOBODY)
        else:
            exchange = HttpExchange(self, turn.head)
            self.plant.plane.refused(exchange, error)
            named = ids(exchange.trace_id, exchange.caller)
        self._write(turn, status, headers + named, [body])

    def _write(self, turn: Turn, status: int, headers: bytes, parts: list[Buffer]) -> None:
        size = sum(map(len, parts))
        close = b"" if turn.keep_alive else b"connection: close\r\n"
        if size <= JOIN_UP_TO:
            self.transport.write(b"".join((STATUS_LINE[status], headers, close, LENGTH % size, *parts)))
        else:
            self.transport.writelines([STATUS_LINE[status], headers, close, LENGTH % size, *parts])
            self.transport.set_write_buffer_limits()  # pauses the writer, which writelines of some Pythons forgets
        self._finished(turn)

    def _finished(self, turn: Turn) -> None:
        """The first turn has its answer."""
        self.server_state.total_requests += 1
        if not self.turns or self.turns[0] is not turn:
            return
        self.turns.popleft()
        turn.exchange = turn.cycle = None
        if not turn.complete:
            self._linger()
        elif not turn.keep_alive or (self.stopping and not self.turns):
            self._hang_up()
        else:
            if len(self.turns) <= 1:
                self.waiting_bytes = 0
                self.flow.resume_reading()
            self._pump()

    # --- the end

    def _refuse(self, error: PenstockError) -> None:
        """The request being received gets `error`; whatever follows on the connection is thrown away."""
        if self.deaf:
            return
        self.deaf = True
        self._stop_reader()
        turn = self.receiving
        self.receiving = None
        if turn is None or turn not in self.turns:
            turn = Turn(False, False)
            self.turns.append(turn)
            if self.begun or self.head_open:
                self.plant.plane.unread(error)
        if turn.cycle is not None:
            if turn.cycle.response_started:
                self.transport.close()
                return
            self._abandon(turn)
            turn.cycle = None
            turn.started = False
        turn.error = error
        turn.exchange = None
        turn.keep_alive = False
        turn.complete = True
        turn.body = b""
        self._pump()

    def _hang_up(self) -> None:
        """Close once the answer is out. A client still sending is given time to read it, or the kernel's reset
        would take it away."""
        if self.deaf:
            self._linger()
        else:
            self.deaf = True
            self.transport.close()

    def _linger(self) -> None:
        self.deaf = True
        if self.transport.is_closing():
            return
        self._expect(LINGER, LINGER_S)
        self.flow.resume_reading()
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unsent = 0
        self._pump()

    # --- everything that is not an infer request: uvicorn's ASGI cycle

    def _asgi(self, turn: Turn, method: bytes) -> None:
        target = parse_target(self.url)
        if target is None:
            turn.error = InvalidRequest("the request target is no valid path")
            return
        self.is_upload = self.plant.uploads(method.decode("ascii"), target.path)
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": self.parser.get_http_version(),
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "method": method.decode("ascii"),
            **target._asdict(),
        }
        turn.cycle = Cycle(
            turn,
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=turn.expects,
            keep_alive=turn.keep_alive,
            on_response=lambda: self._finished(turn),
        )

    def _asgi_body(self, cycle: Cycle, body: bytes) -> None:
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > JOIN_UP_TO:
            self.flow.pause_reading()
        cycle.message_event.set()
