"""A request of an HTTP connection while it is received, waits for its turn, and is answered."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from core.datatypes import Buffer
from core.errors import PenstockError
from gateway.http_exchange import HttpExchange, InferHead


class Turn:
    """One request of a connection: an infer request (`exchange`), or any other (`cycle`)."""

    __slots__ = (
        "body",
        "checked",
        "complete",
        "cycle",
        "error",
        "exchange",
        "expects",
        "head",
        "keep_alive",
        "length",
        "size",
        "started",
    )

    def __init__(self, keep_alive: bool, expects: bool) -> None:
        self.keep_alive = keep_alive
        self.expects = expects
        """The client waits for `100 Continue` before it sends the body."""
        self.exchange: HttpExchange | None = None
        self.head: InferHead | None = None
        self.cycle: Cycle | None = None
        self.error: PenstockError | None = None
        """Decided before the request was whole; answered in its turn."""
        self.length = 0
        """Content-Length; 0 where there is none."""
        self.body: Buffer = b""
        self.size = 0
        self.checked = False
        """Its body did not come with its head."""
        self.complete = False
        self.started = False

    def add(self, data: bytes) -> None:
        """Collect body bytes; the first read is kept as it is, so a body that came in one is never copied."""
        self.size += len(data)
        if not self.body:
            self.body = data
        else:
            if not isinstance(self.body, bytearray):
                self.body = bytearray(self.body)
            self.body += data


class Cycle(RequestResponseCycle):
    """uvicorn's, which says `Connection: close` where it answers before the body is whole: the rest is not read as a
    request, so a client that kept the connection would find it closed under its next one."""

    def __init__(self, turn: Turn, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._turn = turn

    async def send(self, message: Any) -> None:
        early = not self.response_started and not self._turn.complete
        if early:
            self._turn.keep_alive = self.keep_alive = False
        await super().send(message)
        if early:
            self.keep_alive = True  # or uvicorn would hang up at once, and the kernel's reset take the answer away


class Known:
    """The head of the connection's last request, if that came in one read, with its length as a whole."""

    __slots__ = ("head", "raw", "whole")

    def __init__(self, raw: bytes, whole: int, head: InferHead) -> None:
        self.raw = raw
        self.whole = whole
        self.head = head


class Target(NamedTuple):
    """A request target as ASGI has it."""

    path: str
    raw_path: bytes
    query_string: bytes


def parse_target(url: bytes) -> Target | None:
    """None for a target that has no path, or whose path is not UTF-8 once decoded."""
    try:
        parsed = httptools.parse_url(url)
        return Target(unquote_to_bytes(parsed.path).decode("utf-8"), parsed.path, parsed.query or b"")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError, TypeError):
        return None
