"""What a host of workers opened → the transport that reaches it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from core.settings import Settings
from core.spans import Spans
from gateway.transports.base import Done, Transport
from gateway.transports.inproc import InProcess
from gateway.transports.process import Process
from workers.batch_spans import BatchSpans
from workers.child import Child
from workers.messages import Batch, Reply
from workers.worker import Worker

log = structlog.get_logger(__name__)

Send = Callable[[Batch, Done], None]


def transport_for(endpoint: Worker | Child, settings: Settings, spans: Spans | None = None) -> Transport:
    """A transport for a worker in this process or in a child's, with the window and the times of the settings. `spans`:
    where those of its executions go, if anything is traced."""
    transport: InProcess | Process
    if isinstance(endpoint, Child):
        transport = Process(endpoint, settings.window, settings.child_patience_s, settings.drain_timeout_s)
    else:
        transport = InProcess(endpoint, settings.window, settings.drain_timeout_s)
    if spans is not None:
        transport.send = _observed(transport.send, BatchSpans(endpoint.version, spans, broker=False))
    return transport


def _observed(send: Send, spans: BatchSpans) -> Send:
    """The same, but replies to batches with a traced member pass by `spans`."""

    def observed(batch: Batch, done: Done) -> None:
        send(batch, done if batch.context is None else partial(passing, batch, done))

    def passing(batch: Batch, done: Done, reply: Reply) -> None:
        try:
            spans.observe(batch, reply, batch.context)
        except Exception:
            log.exception("an execution could not be recorded")
        done(reply)

    return observed
