"""Spans that are kept, in place of being exported."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from core.spans import Spans


class Kept(Spans):
    """`emitted_together`: what came in one call each."""

    def __init__(self) -> None:
        super().__init__(InMemorySpanExporter(), "test")
        self.emitted_together: list[list[ReadableSpan]] = []

    def emit(self, spans: Sequence[ReadableSpan]) -> bool:
        self.emitted_together.append(list(spans))
        return True

    @property
    def kept(self) -> list[ReadableSpan]:
        return [span for spans in self.emitted_together for span in spans]

    @property
    def traces(self) -> list[dict[str, ReadableSpan]]:
        """By name."""
        return [{span.name: span for span in spans} for spans in self.emitted_together]
