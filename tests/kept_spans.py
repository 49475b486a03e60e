"""Spans that are kept, in place of being exported."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from core.otlp_spans import readable
from core.spans import Span, Spans

RESOURCE = Resource({"service.name": "test"})


class Kept(Spans):
    """`emitted_together`: what came in one call each."""

    def __init__(self) -> None:
        self.emitted_together: list[list[ReadableSpan]] = []

    def emit(self, spans: Sequence[Span]) -> bool:
        self.emitted_together.append([readable(span, RESOURCE) for span in spans])
        return True

    @property
    def kept(self) -> list[ReadableSpan]:
        return [span for spans in self.emitted_together for span in spans]

    @property
    def traces(self) -> list[dict[str, ReadableSpan]]:
        """By name."""
        return [{span.name: span for span in spans} for spans in self.emitted_together]
