"""Records what becomes of requests: statistics, metrics and spans, each from the same times.

Statistics and metrics once for each batch that is back; what was refused, failed or left, one by one. Spans only of
what is traced.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import structlog

from core.errors import NotReady, PenstockError
from core.settings import Settings
from core.trace import Ahead
from gateway.batching.entry import Entry
from gateway.exchange import Exchange
from gateway.meters import Meters
from gateway.statistics import Statistics
from gateway.tracing import Tracer, begin
from repository.records import Version

if TYPE_CHECKING:
    from gateway.batching.batcher import BatchDone
    from gateway.dataplane import Call
    from gateway.routing import Route


log = structlog.get_logger(__name__)

FAILED = "a request could not be recorded"
"""Which takes nothing from its answer."""


class Recorder:
    """Of one gateway. `tracer`: None where nothing is traced."""

    def __init__(self, settings: Settings, tracer: Tracer | None = None) -> None:
        self.meters = Meters(settings.metrics_buckets_ms)
        self.tracer = tracer

    def version(self, version: Version, statistics: Statistics) -> VersionRecorder:
        return VersionRecorder(self, version, statistics)

    def unrouted(self, exchange: Exchange, error: PenstockError, tenant: str = "") -> None:
        """A request that reached no open version; one that would have, had it been open, counts as that version's."""
        try:
            version = error.version if isinstance(error, NotReady) else None
            if version is None:
                self.meters.unrouted[error.reason] += 1
            else:
                self.meters.version(*version).refused(error.reason, tenant)
            if self.tracer is not None:
                self.tracer.end(exchange, None, None, error)
        except Exception:
            log.exception(FAILED)

    def unread(self, error: PenstockError) -> None:
        """A request of which no more is known than that it was refused."""
        self.meters.unrouted[error.reason] += 1


class VersionRecorder:
    """Of one open version. `statistics` are V2's, and end with the version."""

    def __init__(self, recorder: Recorder, version: Version, statistics: Statistics) -> None:
        self.statistics = statistics
        self._meters = recorder.meters.version(version.model, str(version.version))
        self._tracer = recorder.tracer
        self._sampled = None if recorder.tracer is None else recorder.tracer.sampled(version.model)

    def begin(self, exchange: Exchange) -> Ahead | None:
        """The spans that the execution of a request has to do with, if it is traced."""
        if self._sampled is None:
            return None
        try:
            why = self._sampled.why(exchange)
            return begin(exchange, why) if why else None
        except Exception:
            log.exception(FAILED)
            return None

    def executed(self, batch: BatchDone) -> None:
        """A batch is back and its callers have their answers."""
        self.statistics.executed(batch)
        calls = cast("Sequence[Call]", batch.succeeded)
        if any(call.state == Entry.SPOILED for call in calls):
            calls = [call for call in calls if call.state != Entry.SPOILED]
        self._meters.executed(batch, calls)
        if self._tracer is not None:
            for call in calls:
                if call.trace is not None:
                    self._meters.show(call, batch, call.exchange.trace_id)
                    self._tracer.end(call.exchange, call.route, call, None)

    def unanswered(
        self, exchange: Exchange, route: Route, entry: Entry | None, error: PenstockError, tenant: str = ""
    ) -> None:
        """A request that gets `error` in place of an answer. `tenant`: whose it is, where there is no `entry`."""
        try:
            self.statistics.refused(error.reason, time.monotonic_ns() - exchange.received)
            self._meters.refused(error.reason, tenant if entry is None else entry.tenant)
            if self._tracer is not None:
                self._tracer.end(exchange, route, entry, error)
        except Exception:
            log.exception(FAILED)

    def cancelled(self, exchange: Exchange, route: Route, entry: Entry) -> None:
        """The client left before there was an answer."""
        try:
            self.statistics.cancelled += 1
            self._meters.cancelled(entry.tenant)
            if self._tracer is not None:
                self._tracer.end(exchange, route, entry, None, left=True)
        except Exception:
            log.exception(FAILED)
