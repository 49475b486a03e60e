"""What V2 tells of the server and its models, as plain dicts in the protocol's own words: REST answers them as JSON,
gRPC parses them into its messages. Pure.

T:docs/protocol/extension_{model_configuration,model_repository,statistics}.md, TCm:protobuf/model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import version as installed
from typing import Any

from core.errors import NotReady
from core.identity import Principal
from gateway.batching.queue import DEFAULT_LEVEL, LEVELS
from gateway.routing import Route, Table
from gateway.statistics import BatchSize, Duration, Statistics
from repository.access import reason_for
from repository.catalog import Catalog
from repository.records import READY, TensorSpec, Version

NAME = "penstock"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Exactly what works. `unload_dependents` is met trivially: no model depends on another."""

BACKENDS = {"onnx": "onnxruntime", "torch": "pytorch", "pt2": "pytorch", "sklearn": "sklearn", "python": "python"}
"""Artifact format → what Triton's configuration calls a backend."""

Answer = dict[str, Any]


def server_metadata() -> Answer:
    return {"name": NAME, "version": installed("penstock-server"), "extensions": list(EXTENSIONS)}


def model_metadata(route: Route, table: Table, principal: Principal) -> Answer:
    """Of an open version; `versions` are all that are open of its model."""
    version = route.version
    return {
        "name": route.name,
        "versions": [other.number for other in table.open(principal) if other.name == route.name],
        "platform": version.platform,
        "inputs": [_tensor_metadata(spec) for spec in version.signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in version.signature.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> Answer:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


# --- configuration ------------------------------------------------------------------------------------------------


def model_config(version: Version) -> Answer:
    """In the form of Triton's `ModelConfig`: dims without the batch dimension, labels and bounds as parameters."""
    batched = version.max_batch > 0
    signature = version.signature
    config: Answer = {
        "name": version.model,
        "platform": version.platform,
        "backend": BACKENDS[version.format],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max(0, version.max_batch),
        "input": [_tensor_config(spec, batched) for spec in signature.inputs],
        "output": [_tensor_config(spec, batched) for spec in signature.outputs],
        "parameters": _parameters(version),
        "model_warmup": [_warmup(size, signature.inputs, batched) for size in version.warmup],
    }
    if batched:
        config["dynamic_batching"] = _dynamic_batching(version)
    return config


def _tensor_config(spec: TensorSpec, batched: bool) -> Answer:
    return {"name": spec.name, **_type_and_dims(spec, batched)}


def _type_and_dims(spec: TensorSpec, batched: bool) -> Answer:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"data_type": f"TYPE_{kind}", "dims": list(spec.shape[1:] if batched else spec.shape)}


def _parameters(version: Version) -> Answer:
    """Triton has a place for the deadline and the queue's bound only where a model batches; here they always hold."""
    values = {"default_deadline_ms": str(version.default_deadline_ms), "queue_bound": str(version.queue_bound)}
    for spec in version.signature.outputs:
        if spec.labels:
            values[f"labels:{spec.name}"] = json.dumps(spec.labels, ensure_ascii=False)
    return {name: {"string_value": value} for name, value in values.items()}


def _warmup(size: int, inputs: Iterable[TensorSpec], batched: bool) -> Answer:
    tensors = {spec.name: _type_and_dims(spec, batched) for spec in inputs}
    return {"name": f"rows-{size}", "batch_size": size if batched else 0, "inputs": tensors}


def _dynamic_batching(version: Version) -> Answer:
    """A batch leaves as soon as a slot is free, so nothing is delayed; requests that are late are rejected."""
    return {
        "preferred_batch_size": [version.max_batch],
        "max_queue_delay_microseconds": 0,
        "priority_levels": LEVELS,
        "default_priority_level": DEFAULT_LEVEL,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": version.default_deadline_ms * 1000,
            "allow_timeout_override": True,
            "max_queue_size": version.queue_bound,
        },
    }


# --- statistics ---------------------------------------------------------------------------------------------------


def statistics(table: Table, model: str, version: str, principal: Principal) -> Answer:
    """Of one version, of all open ones of a model (no version), or of all that the caller sees (no model).

    Raises InvalidRequest, NotFound or NotReady.
    """
    if version:
        return {"model_stats": [model_statistics(table.resolve(model, version, principal))]}
    if model:
        table.number(model, "", principal)
    routes = [route for route in table.open(principal) if model in ("", route.name)]
    if model and not routes:
        raise NotReady(f"no version of model {model!r} is ready")
    return {"model_stats": [model_statistics(route) for route in routes]}


def model_statistics(route: Route) -> Answer:
    """`batch_close`, `refusals` and `cancelled` go beyond the extension: why batches closed and requests failed."""
    counted = route.statistics
    return {
        "name": route.name,
        "version": route.number,
        "last_inference": counted.last_inference,
        "inference_count": counted.inference_count,
        "execution_count": round(counted.execution_count),
        "inference_stats": _inference_stats(counted),
        "response_stats": {},
        "batch_stats": [_batch_stats(counted.sizes[size]) for size in sorted(counted.sizes)],
        "memory_usage": [],
        "batch_close": dict(counted.closed),
        "refusals": dict(counted.refusals),
        "cancelled": counted.cancelled,
    }


def _inference_stats(counted: Statistics) -> Answer:
    """There is no response cache: its two rows stay zero."""
    rows = {
        "success": counted.success,
        "fail": counted.fail,
        "queue": counted.queue,
        "compute_input": counted.compute_input,
        "compute_infer": counted.compute_infer,
        "compute_output": counted.compute_output,
        "cache_hit": Duration(),
        "cache_miss": Duration(),
    }
    return {name: _duration(duration) for name, duration in rows.items()}


def _batch_stats(size: BatchSize) -> Answer:
    count = round(size.executions)
    return {
        "batch_size": size.batch_size,
        "compute_input": {"count": count, "ns": round(size.compute_input)},
        "compute_infer": {"count": count, "ns": round(size.compute_infer)},
        "compute_output": {"count": count, "ns": round(size.compute_output)},
    }


def _duration(duration: Duration) -> Answer:
    return {"count": duration.count, "ns": duration.ns}


# --- repository ---------------------------------------------------------------------------------------------------


def repository_index(catalog: Catalog, principal: Principal, ready_only: bool = False) -> list[Answer]:
    """Every recorded version that the caller sees, by model and number; `ready_only`: those that are loaded."""
    return [
        _index_row(catalog, version, principal)
        for model in sorted(catalog.versions)
        if principal.sees(model)
        for version in catalog.versions[model].values()
        if not ready_only or catalog.state(model, version.version) == READY
    ]


def _index_row(catalog: Catalog, version: Version, principal: Principal) -> Answer:
    state = catalog.states.get((version.model, version.version))
    return {
        "name": version.model,
        "version": str(version.version),
        "state": catalog.state(version.model, version.version),
        "reason": reason_for(principal, state),
    }
