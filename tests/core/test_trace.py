"""Trace contexts: what is understood of a header, and what is as if it were not there."""

from __future__ import annotations

import pytest

from core import trace
from core.trace import Ahead, Caller, Context, Sampling, parse

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTEXT = Context(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)


@pytest.mark.parametrize(
    ("header", "context"),
    [
        (PARENT, CONTEXT),
        (b" " + PARENT + b"\t", CONTEXT),
        (PARENT[:-2] + b"00", CONTEXT._replace(sampled=False)),
        (PARENT[:-2] + b"03", CONTEXT),
        (b"01" + PARENT[2:] + b"-what-comes-later", CONTEXT),
        (b"cc" + PARENT[2:], CONTEXT),
    ],
)
def test_a_traceparent_is_understood(header: bytes, context: Context) -> None:
    """W3C Trace Context 3.2 and 4: later versions too, as far as they agree with the first."""
    assert parse(header) == context


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"ff" + PARENT[2:],
        PARENT + b"-more",
        PARENT.upper(),
        PARENT[:-1],
        PARENT.replace(b"0af7651916cd43dd8448eb211c80319c", b"0" * 32),
        PARENT.replace(b"b7ad6b7169203331", b"0" * 16),
        PARENT.replace(b"-", b"_"),
        PARENT.replace(b"a", b"g"),
        b"00-" + b"a" * 100_000,
        b"\xff\x00" * 30,
        PARENT + b"\r\nx: y",
        PARENT + b"," + PARENT,
    ],
)
def test_what_is_no_traceparent_is_as_if_it_were_not_there(header: bytes | None) -> None:
    assert parse(header) is None


@pytest.mark.parametrize(
    ("header", "state"),
    [
        (b"vendor=1", "vendor=1"),
        (b"a=1, b@sys=x y ,", "a=1,b@sys=x y"),
        (b"", ""),
        (b"no equals", ""),
        (b"UPPER=1", ""),
        (b"a=" + b"x" * 512, ""),
        (b",".join(b"a%d=1" % at for at in range(33)), ""),
        (b"a=\x00", ""),
        (b"a=b=c", ""),
        ("a=ü".encode(), ""),
    ],
)
def test_a_tracestate_is_carried_on_or_dropped_whole(header: bytes, state: str) -> None:
    """Dropped alone: its traceparent stays."""
    assert parse(PARENT, header) == CONTEXT._replace(state=state)


def test_a_tracestate_alone_is_nothing() -> None:
    assert parse(None, b"vendor=1") is None


def test_a_context_goes_through_headers_and_messages() -> None:
    context = CONTEXT._replace(state="a=1")
    assert trace.from_headers(dict(trace.headers_of(context))) == context
    assert trace.headers_of(CONTEXT) == {"traceparent": PARENT.decode()}
    assert trace.unpack(trace.pack(CONTEXT)) == CONTEXT
    assert len(trace.pack(Ahead(CONTEXT, CONTEXT).compute)) == trace.PACKED


@pytest.mark.parametrize("headers", [{}, {"traceparent": 7}, {"traceparent": "ü" * 55}, {"traceparent": b"00-x"}])
def test_a_messages_headers_may_say_anything(headers: dict[str, object]) -> None:
    assert trace.from_headers(headers) is None


@pytest.mark.parametrize("packed", [b"", b"x", bytes(24), b"x" * 25, bytes(16) + b"x" * 8, b"x" * 16 + bytes(8)])
def test_a_message_may_carry_no_context(packed: bytes) -> None:
    assert trace.unpack(packed) is None


def test_a_caller_names_its_request() -> None:
    caller = Caller.of(PARENT, b"v=1", b"order-7/a+b@c:d=_.e")
    assert (caller.origin, caller.request_id) == (CONTEXT._replace(state="v=1"), "order-7/a+b@c:d=_.e")
    assert caller.new_trace() == CONTEXT.trace_id


@pytest.mark.parametrize("name", [b"", b"x" * 129, b"two words", b"a\r\nb", b"a\x1b[0m", "ü".encode(), b'"quoted"'])
def test_a_name_that_may_not_be_repeated_is_none(name: bytes) -> None:
    assert Caller.of(None, None, name).request_id == ""


def test_who_says_nothing_gets_a_trace_of_its_own() -> None:
    assert trace.NOBODY.new_trace() != trace.NOBODY.new_trace()
    assert 0 < trace.NOBODY.new_trace() < 1 << 128


def test_a_ratio_is_a_bound_on_half_of_the_id() -> None:
    """As `TraceIdRatioBased` of the SDKs: so all that a request passes decide alike."""
    sampling = Sampling(0.25, by_model={"all": 1.0, "none": 0.0})
    assert sampling.bound("any") == 1 << 62
    assert sampling.bound("all") == 1 << 64
    assert sampling.bound("none") == 0
