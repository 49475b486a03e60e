"""Trace contexts as they cross a wire (W3C Trace Context), and which requests are sampled. Pure.

    traceparent: 00-<trace id, 32 hex>-<parent id, 16 hex>-<flags, 2 hex>      tracestate: vendor=value,…

What does not have that form is as if it were not there: it never fails a request. `baggage` is not read, nor sent on.
Inside a message of ours a context is 24 bytes: the trace id, then the span id, both big-endian.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import getrandbits
from typing import NamedTuple

TRACE_HALF = (1 << 64) - 1
"""The half of a trace id that a ratio goes by, as `TraceIdRatioBased` of the SDKs has it."""
PACKED = 24
"""Bytes of a context inside a message."""
STATE_BYTES, STATE_MEMBERS = 512, 32
"""W3C Trace Context 3.3.1: what everybody must be able to carry on; more is dropped."""

_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_STATE_MEMBER = re.compile(
    rb"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

new_id = getrandbits
"""`new_id(128)` of a trace, `new_id(64)` of a span: of Python's own generator, seeded by the system at the start."""


class Context(NamedTuple):
    """The span that something belongs under. `state`: the tracestate, '' where there is none."""

    trace_id: int
    span_id: int
    sampled: bool = True
    state: str = ""


class Ahead(NamedTuple):
    """Spans of a traced request that others must know before they are built: `publish`, which its execution belongs
    under, and `compute`, which that is linked with."""

    publish: Context
    compute: Context


def parse(traceparent: bytes | None, tracestate: bytes | None = None) -> Context | None:
    """What a caller says its request belongs to; None where it says nothing that can be understood."""
    if traceparent is None:
        return None
    match = _PARENT.fullmatch(traceparent.strip())
    if match is None or (match[1] == b"00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    return Context(trace_id, span_id, bool(int(match[4], 16) & 1), _state(tracestate or b""))


def _state(tracestate: bytes) -> str:
    members = [member.strip() for member in tracestate.split(b",")]
    kept = [member for member in members if member]
    fits = len(tracestate) <= STATE_BYTES and len(kept) <= STATE_MEMBERS
    if not fits or not all(_STATE_MEMBER.fullmatch(member) for member in kept):
        return ""
    return b",".join(kept).decode()


def traceparent(context: Context) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.sampled):02x}"


def headers_of(context: Context) -> dict[str, str]:
    """The headers of a message that belongs under `context`."""
    headers = {"traceparent": traceparent(context)}
    return headers | {"tracestate": context.state} if context.state else headers


def from_headers(headers: Mapping[str, object]) -> Context | None:
    """The context of a message; None where it has none that can be understood."""
    parent, state = headers.get("traceparent"), headers.get("tracestate")
    if not isinstance(parent, str):
        return None
    return parse(
        parent.encode("latin-1", "replace"), state.encode("latin-1", "replace") if isinstance(state, str) else None
    )


def pack(context: Context) -> bytes:
    return (context.trace_id << 64 | context.span_id).to_bytes(PACKED, "big")


def unpack(packed: bytes) -> Context | None:
    """None for what is no context."""
    if len(packed) != PACKED:
        return None
    whole = int.from_bytes(packed, "big")
    trace_id, span_id = whole >> 64, whole & TRACE_HALF
    return Context(trace_id, span_id) if trace_id and span_id else None


class Caller(NamedTuple):
    """What a request says of itself: the span it belongs under, and its id at the caller."""

    origin: Context | None = None
    request_id: str = ""

    @classmethod
    def of(cls, traceparent: bytes | None, tracestate: bytes | None, request_id: bytes | None) -> Caller:
        """By its headers; what cannot be understood of them is as if it were not there."""
        if traceparent is None and request_id is None:
            return NOBODY
        given = request_id if request_id is not None and _REQUEST_ID.fullmatch(request_id) else b""
        return cls(parse(traceparent, tracestate), given.decode())

    def new_trace(self) -> int:
        """The id of a request's trace: the caller's, else a new one."""
        return self.origin.trace_id if self.origin is not None else new_id(128)

    def names(self, trace_id: int) -> tuple[str, str]:
        """What an answer calls a request (by the caller's own id of it, else by the trace's) and its trace."""
        trace = f"{trace_id:032x}"
        return self.request_id or trace, trace


NOBODY = Caller()


class Sampling(NamedTuple):
    """Which requests are traced. `parent_based`: who says that it is traced, or is not, is believed. `floor`: at least
    one request a second of each model is, so that a model that is seldom asked is seen too."""

    ratio: float
    parent_based: bool = True
    floor: bool = False
    by_model: Mapping[str, float] = {}

    def bound(self, model: str) -> int:
        """Sampled are trace ids whose lower half is less than this."""
        return round(self.by_model.get(model, self.ratio) * (TRACE_HALF + 1))
