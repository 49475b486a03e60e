"""A request of an HTTP connection while it is received, waits for its turn, and is answered."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from core.datatypes import Buffer
from core.errors import PenstockError
from gateway.http_exchange import HttpExchange, InferHead


class Turn:
    """One request of a connection: an infer request (`exchange`), or any other (`cycle`, uvicorn's)."""

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
        self.cycle: RequestResponseCycle | None = None
        self.error: PenstockError | None = None
        """Decided before the request was whole; answered in its turn."""
        self.length = 0
        """Content-Length; 0 where there is none."""
        self.body: Buffer = b""
        self.size = 0
        self.checked = False
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
