"""Every metric that a process of ours may tell, and every attribute of ours on a span: names are made here only.

The tables of docs/telemetry.md are made from these.
"""

from __future__ import annotations

from typing import NamedTuple

from core import errors

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(NamedTuple):
    """`name` as Prometheus has it, a counter's without its `_total`. Times in seconds, as Prometheus wants them."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


_VERSION = ("model", "version")

DURATION = Metric(
    "penstock_request_duration_seconds",
    HISTOGRAM,
    (*_VERSION, "stage", "transport"),
    "Answered requests by stage: wait (in the gateway, for a batch), queue (until the model begins), compute, total "
    "(from the whole request to its answer, by transport: rest or grpc; the other stages have no transport)",
)
REQUESTS = Metric(
    "penstock_requests",
    COUNTER,
    (*_VERSION, "outcome"),
    "Requests by outcome: ok; invalid (the caller's fault); refused (for want of room, or not ready); failed (model or "
    "server); late (the deadline passed); cancelled (the client left)",
)
REFUSALS = Metric(
    "penstock_refusals", COUNTER, (*_VERSION, "reason"), "Requests without an answer, by the error's reason"
)
UNROUTED = Metric(
    "penstock_unrouted_requests",
    COUNTER,
    ("reason",),
    "Infer requests that reached no model, by the error's reason: those refused before they were whole, and HTTP "
    "requests without a readable head, among them",
)
TENANTS = Metric(
    "penstock_tenant_requests",
    COUNTER,
    ("tenant", "outcome"),
    "Requests by tenant: the first 100 that ask have their name, the rest are `other`",
)
BATCH_ROWS = Metric("penstock_batch_rows", HISTOGRAM, _VERSION, "Rows of the batches that the gateway sent")
BATCHES = Metric(
    "penstock_batches", COUNTER, (*_VERSION, "reason"), "Batches by what closed them: slot, full, deadline and so on"
)
QUEUED = Metric("penstock_queue_rows", GAUGE, _VERSION, "Rows that wait for a batch in this gateway")
OLDEST = Metric("penstock_queue_oldest_seconds", GAUGE, _VERSION, "How long the oldest of them has waited")
IN_FLIGHT = Metric("penstock_in_flight_requests", GAUGE, _VERSION, "Requests accepted and not answered")
IN_FLIGHT_BATCHES = Metric("penstock_in_flight_batches", GAUGE, _VERSION, "Batches sent and not answered")
REPLICAS = Metric("penstock_replicas", GAUGE, _VERSION, "Ready replicas that this gateway hears of")
CONNECTIONS = Metric("penstock_http_connections", GAUGE, (), "Open HTTP connections of this gateway")
SPANS = Metric(
    "penstock_spans", COUNTER, ("outcome",), "Spans: exported, dropped (no room to wait), failed (not delivered)"
)
EXECUTIONS = Metric("penstock_execution_seconds", HISTOGRAM, _VERSION, "The model's executions at this worker")
EXECUTION_ROWS = Metric("penstock_execution_rows", HISTOGRAM, _VERSION, "Rows of an execution, over all it merged")
WORKER_QUEUE = Metric("penstock_worker_queue_seconds", HISTOGRAM, _VERSION, "A batch's wait at this worker")
WORKER_BATCHES = Metric("penstock_worker_batches", GAUGE, _VERSION, "Batches taken from the broker and not answered")
GPU_MEMORY = Metric("penstock_gpu_memory_bytes", GAUGE, _VERSION, "Device memory that torch holds in this replica")
GPU_USE = Metric("penstock_gpu_utilization_ratio", GAUGE, _VERSION, "Share of time in which the device ran a kernel")
DEPLOYED = Metric("penstock_deployed_replicas", GAUGE, _VERSION, "Replicas that the reconciler has asked Ray Serve for")

GATEWAY = (
    DURATION, REQUESTS, REFUSALS, UNROUTED, TENANTS, BATCH_ROWS, BATCHES,
    QUEUED, OLDEST, IN_FLIGHT, IN_FLIGHT_BATCHES, REPLICAS, CONNECTIONS,
)  # fmt: skip
WORKER = (EXECUTIONS, EXECUTION_ROWS, WORKER_QUEUE, WORKER_BATCHES, GPU_MEMORY, GPU_USE)
METRICS = (*GATEWAY, *WORKER, DEPLOYED, SPANS)

OTHER = "other"
TENANTS_NAMED = 100

OUTCOMES = OK, INVALID, REFUSED, FAILED, LATE, CANCELLED = "ok", "invalid", "refused", "failed", "late", "cancelled"
_BY_CLASS = (
    (errors.DeadlineExceeded, LATE),
    ((errors.Internal, errors.ModelFailed, errors.WorkerLost), FAILED),
    ((errors.Unavailable, errors.QuotaExceeded), REFUSED),
)


def outcome_of(reason: str) -> str:
    """What an error's reason counts as."""
    kind = errors.BY_REASON.get(reason, errors.Internal)
    return next((outcome for classes, outcome in _BY_CLASS if issubclass(kind, classes)), INVALID)


class Attribute(NamedTuple):
    name: str
    help: str


MODEL = Attribute("penstock.model", "the model's name")
VERSION = Attribute("penstock.version", "the version that served, in digits")
TENANT = Attribute("penstock.tenant", "first 16 hex digits of the SHA-256 of the key's owner")
ROWS = Attribute("penstock.rows", "rows of the request")
OUTCOME = Attribute("penstock.outcome", "as in the metric penstock_requests")
DEADLINE_LEFT = Attribute(
    "penstock.deadline_left_ms", "time left until the deadline at the end of the span; negative: late"
)
SAMPLED_FOR = Attribute("penstock.sampled_for", "why the trace is here: ratio, parent, floor, or failure")
REQUEST_ID = Attribute("penstock.request_id", "the caller's own id of the request, where it gave one")
BATCH_SIZE = Attribute(
    "penstock.batch.rows", "rows of the batch that the gateway sent; of a worker's span: that it ran"
)
BATCH_MEMBERS = Attribute("penstock.batch.members", "requests in it; of a worker's span: those that are traced")
CLOSE_REASON = Attribute("penstock.batch.close_reason", "what closed the batch")
ATTEMPT = Attribute("penstock.attempt", "which try of a request that a process died with this is")
INPUT_MS = Attribute("penstock.compute.input_ms", "to merge the batch's inputs")
INFER_MS = Attribute("penstock.compute.infer_ms", "in the model itself")
OUTPUT_MS = Attribute("penstock.compute.output_ms", "to check and cut its outputs")

ATTRIBUTES = (
    MODEL, VERSION, TENANT, ROWS, OUTCOME, DEADLINE_LEFT, SAMPLED_FOR, REQUEST_ID,
    BATCH_SIZE, BATCH_MEMBERS, CLOSE_REASON, ATTEMPT, INPUT_MS, INFER_MS, OUTPUT_MS,
)  # fmt: skip

EMBEDDED_SERVICE = "penstock"
GATEWAY_SERVICE, WORKER_SERVICE = "penstock-gateway", "penstock-worker"
CONTROL_SERVICE, DRIVER_SERVICE = "penstock-control", "penstock-workers"
