"""What a process of ours is watched by: its spans, metrics to scrape, metrics by OTLP; begun and ended as one."""

from __future__ import annotations

from core import otel, otlp_metrics
from core.exposition import Exposition, Find
from core.meters import OfSpans, Source, registry
from core.otlp_metrics import Pusher
from core.settings import Settings


class Watched:
    """`process`: gateway, worker, control, workers or embedded; `service`: what OpenTelemetry calls it."""

    def __init__(self, settings: Settings, process: str, service: str) -> None:
        self.spans = otel.from_environment(service)
        self.exposition: Exposition | None = None
        self._settings = settings
        self._process = process
        self._service = service
        self._pusher: Pusher | None = None

    def expose(self, find: Find, *sources: Source) -> None:
        """Tell what these say to whoever asks; `find` the keys of those who must show one."""
        own = OfSpans(self.spans) if self.spans is not None else None
        told = registry(*sources, own)
        self.exposition = Exposition(told, self._settings, self._process, find)
        self.exposition.start()
        self._pusher = otlp_metrics.from_environment(told, self._service)

    def close(self) -> None:
        """Send what waits. Blocks, for some seconds at the most."""
        for part in (self._pusher, self.exposition, self.spans):
            if part is not None:
                part.close()
