"""One request for each model, as each transport carries it."""

from __future__ import annotations

import json

import numpy as np
from penstock import wire
from tritonclient.grpc import service_pb2 as pb

Array = wire.Array
MODELS: dict[str, tuple[str, Array]] = {
    "digits": ("image", (np.arange(64, dtype=np.float32) % 17).reshape(1, 8, 8)),
    "iris": ("input", np.array([[5.1, 3.5, 1.4, 0.2]])),
}
"""Those that the load tests know: the name of the input, and one row for it."""

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def rest(model: str, transport: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of `rest-json` or `rest-binary`."""
    name, row = MODELS[model]
    if transport == "rest-binary":
        return wire.encode({name: row})
    return json.dumps({"inputs": [wire.to_json(name, row)]}).encode(), {"Content-Type": "application/json"}


def rpc(model: str) -> bytes:
    """A serialised ModelInferRequest."""
    name, row = MODELS[model]
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=wire.datatype_of(row), shape=row.shape)
    request = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[row.tobytes()])
    return bytes(request.SerializeToString())


def credential(key: str) -> tuple[str, str]:
    """The header, or the metadata of a call, that says who asks."""
    return "authorization", f"Bearer {key}"
