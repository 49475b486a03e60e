"""Records what a replica's model ran: metrics of every execution, spans of those with a traced request aboard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from prometheus_client.core import Metric

from core import telemetry, trace
from core.meters import ROWS, Histogram, durations, gauges, histograms
from core.spans import Spans
from repository.records import Version
from workers.batch_spans import BatchSpans
from workers.delivery import Delivery
from workers.messages import Reply

log = structlog.get_logger(__name__)


class Recorder:
    """Of the replica of one version; `in_flight`: batches taken and not answered. `device`: as torch calls it."""

    def __init__(
        self,
        version: Version,
        buckets_ms: Sequence[float],
        spans: Spans | None,
        device: str = "cpu",
        in_flight: Callable[[], int] = int,
    ) -> None:
        self.in_flight = in_flight
        self._key = (version.model, str(version.version))
        self._device = device
        self._spans = None if spans is None else BatchSpans(version, spans, broker=True)
        self._seconds, self._queue = durations(buckets_ms), durations(buckets_ms)
        self._rows = Histogram(ROWS)
        self._last = 0
        """The execution that was counted last: each batch of it tells of it."""

    def observe(self, delivery: Delivery, reply: Reply) -> None:
        """A batch was answered. The replies of one execution come one after the other. Never raises."""
        try:
            self._observe(delivery, reply)
        except Exception:
            log.exception("a batch could not be recorded", model="/".join(self._key))

    def _observe(self, delivery: Delivery, reply: Reply) -> None:
        timing = reply.timing
        self._queue.observe(delivery.started - delivery.arrived + timing.queue)
        if timing.execution and timing.execution != self._last:
            self._last = timing.execution
            self._seconds.observe(timing.compute)
            self._rows.observe(timing.executed_rows)
        if self._spans is not None:
            self._spans.observe(delivery.batch, reply, trace.from_headers(delivery.headers), delivery.attempt)

    def collect(self) -> Iterable[Metric]:
        key = self._key
        yield histograms(telemetry.EXECUTIONS, [(key, self._seconds)])
        yield histograms(telemetry.EXECUTION_ROWS, [(key, self._rows)])
        yield histograms(telemetry.WORKER_QUEUE, [(key, self._queue)])
        yield gauges(telemetry.WORKER_BATCHES, {key: self.in_flight()})
        if self._device.startswith("cuda"):
            yield from self._of_device()

    def _of_device(self) -> Iterable[Metric]:
        import torch  # the model has brought it already

        yield gauges(telemetry.GPU_MEMORY, {self._key: torch.cuda.memory_reserved(self._device)})
        utilization: Any = torch.cuda.utilization
        try:
            yield gauges(telemetry.GPU_USE, {self._key: utilization(self._device) / 100})
        except (RuntimeError, ImportError):  # no NVML for this process
            return
