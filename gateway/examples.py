"""What the OpenAPI document shows of `/v2`: requests that work on the two sample models, and what they are answered.

Each stands as a server answers it that has trained the samples; numbers that depend on the machine are rounded.
"""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

MODELS: dict[str, Example] = {"iris": {"value": "iris"}, "digits": {"value": "digits"}}
VERSIONS: dict[str, Example] = {"1": {"summary": "a number", "value": "1"}}

FLOWER = {
    "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [[5.1, 3.5, 1.4, 0.2]]}],
    "outputs": [{"name": "predict"}],
    "parameters": {"timeout": 500_000},
}
SIX = [
    [0, 0, 2, 14, 10, 0, 0, 0],
    [0, 0, 12, 10, 0, 0, 0, 0],
    [0, 2, 15, 2, 0, 0, 0, 0],
    [0, 7, 12, 1, 4, 6, 0, 0],
    [0, 7, 16, 16, 15, 15, 8, 0],
    [0, 0, 16, 13, 0, 4, 12, 0],
    [0, 0, 10, 12, 4, 8, 15, 0],
    [0, 0, 2, 11, 16, 15, 5, 0],
]
DIGIT = {
    "id": "held-out digit 968, a 6",
    "inputs": [{"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [SIX]}],
}
PREDICTED = {
    "model_name": "iris",
    "model_version": "1",
    "outputs": [{"name": "predict", "datatype": "INT64", "shape": [1], "data": [0]}],
}
PROBABILITIES = {
    "model_name": "digits",
    "model_version": "1",
    "id": "held-out digit 968, a 6",
    "outputs": [
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [1, 10],
            "data": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        }
    ],
}
OF_FLOWER = "iris: four measurements of a flower, half a second to answer"
OF_DIGIT = "digits: an image of 8 by 8 grey values, 0 to 16"

INFER = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"]},
                "examples": {
                    "iris": {"summary": OF_FLOWER, "value": FLOWER},
                    "digits": {"summary": OF_DIGIT, "value": DIGIT},
                },
            },
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "example": "JSON of Inference-Header-Content-Length bytes, then the tensors",
            },
        },
    }
}
INDEX = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object"}, "example": {"ready": True}}}},
}
EMPTY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}, "example": {}}}}}

Responses = dict[int | str, dict[str, Any]]
_ERROR = {
    "schema": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "error_id": {"type": "string"}},
    }
}


def _told(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": _ERROR}}


ERRORS: Responses = {
    400: _told("something sent is wrong; the message names it"),
    401: _told("no credential, or one that is unknown, expired or revoked"),
    404: _told("no such model or version, or none that the key may see"),
    503: _told("not now; Retry-After says when"),
}


def shown(**examples: object) -> Responses:
    """The 200 of a route, with an example for each model, or for the one name that says what it is of."""
    kind = "array" if all(isinstance(each, list) for each in examples.values()) else "object"
    content = {"schema": {"type": kind}, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {200: {"description": "done", "content": {"application/json": content}}}


def answered(**examples: object) -> Responses:
    """The same for a route that asks for a credential, with its errors."""
    return shown(**examples) | ERRORS


SERVER = answered(
    penstock={
        "name": "penstock",
        "version": "0.1.0",
        "extensions": ["classification", "model_repository", "binary_tensor_data", "statistics"],
    }
)
LIVE = shown(live={"live": True})
READY = shown(ready={"ready": True, "live": True}) | {503: {"description": "starting, or stopping"}}
NAMES = answered(samples={"models": ["digits", "iris"]})
REPOSITORY = answered(
    samples=[
        {"name": "digits", "version": "1", "state": "READY", "reason": ""},
        {"name": "iris", "version": "1", "state": "READY", "reason": ""},
    ]
)
DONE = answered(done={}) | {403: _told("the key's role does not permit this")}
ANSWERS = answered(iris=PREDICTED, digits=PROBABILITIES) | {504: _told("the deadline cannot be met, or has passed")}

METADATA = answered(
    iris={
        "name": "iris",
        "versions": ["1"],
        "platform": "sklearn_skops",
        "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}],
        "outputs": [
            {"name": "predict", "datatype": "INT64", "shape": [-1]},
            {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
        ],
    }
)
MODEL_READY = answered(iris={"name": "iris", "ready": True})
_PART = {"count": 1, "ns": 412_000}
_NONE = {"count": 0, "ns": 0}
STATISTICS = answered(
    iris={
        "model_stats": [
            {
                "name": "iris",
                "version": "1",
                "last_inference": 1_790_000_000_000,
                "inference_count": 1,
                "execution_count": 1,
                "inference_stats": {
                    "success": _PART,
                    "fail": _NONE,
                    "queue": _PART,
                    "compute_input": _PART,
                    "compute_infer": _PART,
                    "compute_output": _PART,
                    "cache_hit": _NONE,
                    "cache_miss": _NONE,
                },
                "response_stats": {},
                "batch_stats": [
                    {"batch_size": 1, "compute_input": _PART, "compute_infer": _PART, "compute_output": _PART}
                ],
                "memory_usage": [],
                "batch_close": {},
                "refusals": {},
                "cancelled": 0,
            }
        ]
    }
)
CONFIG = answered(
    iris={
        "name": "iris",
        "platform": "sklearn_skops",
        "backend": "sklearn",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 32,
        "input": [{"name": "input", "data_type": "TYPE_FP64", "dims": [4]}],
        "output": [
            {"name": "predict", "data_type": "TYPE_INT64", "dims": []},
            {"name": "predict_proba", "data_type": "TYPE_FP64", "dims": [3]},
        ],
        "parameters": {"default_deadline_ms": {"string_value": "30000"}, "queue_bound": {"string_value": "2048"}},
        "model_warmup": [
            {"name": "rows-1", "batch_size": 1, "inputs": {"input": {"data_type": "TYPE_FP64", "dims": [4]}}}
        ],
        "dynamic_batching": {
            "preferred_batch_size": [32],
            "max_queue_delay_microseconds": 0,
            "priority_levels": 10,
            "default_priority_level": 5,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": 30_000_000,
                "allow_timeout_override": True,
                "max_queue_size": 2048,
            },
        },
    }
)
