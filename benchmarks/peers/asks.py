"""What every server is asked, in the form that it speaks, and how the numbers of its answer are read.

Two models, the same for all: `product`, FP32[1,4] → FP32[1,4], and `corner`, an image FP32[1,3,224,224] → its first
four numbers. An answer that does not hold the right numbers makes a measurement void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import orjson
from tritonclient.grpc import service_pb2 as pb

from benchmarks import models
from benchmarks.load import INFER, GrpcTarget, HttpTarget

PRODUCT, CORNER = "product", "corner"
INPUTS: dict[str, models.Rows] = {
    PRODUCT: np.arange(4, dtype=np.float32).reshape(1, 4),
    CORNER: (np.arange(3 * 224 * 224) % 256).astype(np.float32).reshape(1, 3, 224, 224),
}
"""The image's numbers are those of raw pixels: 0.0 to 255.0, so that its JSON (0.9 MB) is of ordinary length."""
JSON = {"Content-Type": "application/json"}
TIMEOUT_S = 60
Numbers = list[float]


class Ask(NamedTuple):
    """An infer request over HTTP; `read` gives the numbers of an answer's body, whose headers have lower-case names."""

    target: HttpTarget
    read: Callable[[bytes, Mapping[str, str]], Numbers]


class Wrong(Exception):
    """An answer did not hold the right numbers."""


class Refused(Wrong):
    """An answer was not 2xx (gRPC: not OK)."""


def right(model: str) -> Numbers:
    """The numbers of a right answer."""
    rows = INPUTS[model]
    return [float(n) for n in (rows @ models.product_weights() if model == PRODUCT else rows[:, :1, :1, :4]).ravel()]


# --- the forms ----------------------------------------------------------------------------------------------------


def v2_json(base: str, model: str, headers: Mapping[str, str] = {}) -> Ask:
    """The V2 protocol with its tensor as JSON; `base` as in http://127.0.0.1:8000."""
    target = HttpTarget(f"{base}/v2/models/{model}/infer", models.json_body(INPUTS[model]), JSON | dict(headers))
    return Ask(target, _read_v2)


def v2_binary(base: str, model: str, headers: Mapping[str, str] = {}) -> Ask:
    """The V2 protocol with binary tensors both ways."""
    body, told = models.binary_body(INPUTS[model])
    return Ask(HttpTarget(f"{base}/v2/models/{model}/infer", body, told | dict(headers)), _read_v2)


def row_json(url: str, model: str) -> Ask:
    """{"x": one row} → {"y": one row}: servers that batch single items."""
    return Ask(HttpTarget(url, orjson.dumps({"x": INPUTS[model][0].tolist()}), JSON), _read_row)


def rows_json(url: str, model: str) -> Ask:
    """{"x": rows} → rows."""
    return Ask(HttpTarget(url, orjson.dumps({"x": INPUTS[model].tolist()}), JSON), _read_rows)


def v2_grpc(address: str, model: str, metadata: Mapping[str, str] = {}) -> GrpcTarget:
    """The V2 protocol over gRPC, raw tensors."""
    return GrpcTarget(address, models.grpc_request(model, INPUTS[model]), dict(metadata))


def _read_v2(body: bytes, headers: Mapping[str, str]) -> Numbers:
    if length := headers.get(models.BINARY_LENGTH.lower()):
        return _flat(np.frombuffer(body[int(length) :], np.float32))
    return _flat(orjson.loads(body)["outputs"][0]["data"])


def _read_row(body: bytes, _: Mapping[str, str]) -> Numbers:
    return _flat(orjson.loads(body)["y"])


def _read_rows(body: bytes, _: Mapping[str, str]) -> Numbers:
    return _flat(orjson.loads(body))


def _read_grpc(body: bytes) -> Numbers:
    answer = pb.ModelInferResponse.FromString(body)
    if answer.raw_output_contents:
        return _flat(np.frombuffer(answer.raw_output_contents[0], np.float32))
    return _flat(list(answer.outputs[0].contents.fp32_contents))


def _flat(numbers: object) -> Numbers:
    return [float(n) for n in np.asarray(numbers, np.float64).ravel()]


# --- asked once, and looked at ------------------------------------------------------------------------------------


def check_http(ask: Ask, model: str) -> None:
    """Raises Wrong, or httpx.HTTPError where nobody answers."""
    url, body, headers = ask.target
    answer = httpx.post(url, content=body, headers=headers, timeout=TIMEOUT_S)
    if not answer.is_success:
        raise Refused(f"it answered {answer.status_code} to {model}")
    _compare(ask.read(answer.content, answer.headers), model)


def check_grpc(target: GrpcTarget, model: str) -> None:
    """Raises Wrong."""
    with grpc.insecure_channel(target.address) as channel:
        call = channel.unary_unary("/" + INFER.replace("Service.", "Service/"), bytes, bytes)
        try:
            answer = call(target.request, timeout=TIMEOUT_S, metadata=tuple(target.metadata.items()))
        except grpc.RpcError as error:
            raise Refused(f"it answered {error.code().name} to {model} over gRPC") from error
    _compare(_read_grpc(answer), model)


def _compare(numbers: Numbers, model: str) -> None:
    if len(numbers) != len(right(model)) or not np.allclose(numbers, right(model), rtol=1e-4, atol=1e-5):
        raise Wrong(f"its answer to {model} is wrong: {numbers[:4]} where {right(model)} is right")
