"""The bytes of spans, held to what OpenTelemetry's own encoder makes of the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind

from core.otlp_spans import Form, encode, readable
from core.spans import Span
from core.trace import Context
from tests.kept_spans import RESOURCE

FORM = Form.of(RESOURCE)
TRACE, ID = st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1)
STATE = st.sampled_from(["", "a=1", "vendor=x y,b@c=2"])
CONTEXT = st.builds(Context, TRACE, ID, st.just(True), STATE)
TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
VALUE = TEXT | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False)
TIME = st.integers(0, (1 << 63) - 1)
SPAN = st.builds(
    Span,
    TEXT,
    CONTEXT,
    st.none() | CONTEXT,
    TIME,
    TIME,
    st.sampled_from(list(SpanKind)),
    st.dictionaries(TEXT, VALUE, max_size=6),
    st.lists(CONTEXT, max_size=3),
    TEXT,
)


def assert_equal(spans: list[Any]) -> None:
    ours = ExportTraceServiceRequest.FromString(encode(spans, FORM))
    assert ours == encode_spans([readable(span, RESOURCE) for span in spans])


@given(st.lists(SPAN, min_size=1, max_size=4))
def test_it_is_what_the_library_makes_of_them(spans: list[Any]) -> None:
    assert_equal(spans)


@pytest.mark.parametrize("number", [0, 1, 127, 128, -1, 1 << 40])
def test_numbers_of_every_length(number: int) -> None:
    assert_equal([Span("s", Context(1, 2), None, 1, 2, attributes={"n": number})])
