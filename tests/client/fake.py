"""A small server that speaks the contract, in a thread: what clients send is kept, what it answers can be scripted.

It decodes tensors with the server's own `core.datatypes`, so that a client cannot agree with its own mistakes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from python_multipart.multipart import parse_form

from core.datatypes import DATATYPES, to_wire
from tests.arrays import to_array

Array = NDArray[Any]
Arrays = dict[str, Array]
HEADER = "Inference-Header-Content-Length"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Scripted(NamedTuple):
    status: int
    body: Any = None
    headers: dict[str, str] = {}


@dataclass
class FakeModel:
    """`run` maps inputs to outputs; `version` may be changed between requests."""

    inputs: list[dict[str, Any]]
    run: Callable[[Arrays], Arrays]
    max_batch: int = 0
    version: str = "1"
    outputs: list[dict[str, Any]] = field(default_factory=list)


class FakeServer:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.key = "psk_good"
        self.requests: list[Request] = []
        self.models: dict[str, FakeModel] = {}
        self.script: dict[str, list[Scripted]] = {}
        self.pushed: list[tuple[dict[str, Any], bytes]] = []
        self.after: Callable[[Request], None] = lambda request: None

    def answers(self, line: str, *answers: Scripted) -> None:
        """The next answers to `METHOD path`, before the server's own."""
        self.script[line] = list(answers)

    def asked(self, prefix: str = "") -> list[Request]:
        return [request for request in self.requests if f"{request.method} {request.path}".startswith(prefix)]

    @property
    def inferences(self) -> list[Request]:
        return [request for request in self.requests if request.path.endswith("/infer")]

    # --- answering ---

    def answer(self, request: Request) -> Scripted:
        self.requests.append(request)
        waiting = self.script.get(f"{request.method} {request.path.partition('?')[0]}")
        found = waiting.pop(0) if waiting else self._own(request)
        self.after(request)
        return found

    def _own(self, request: Request) -> Scripted:
        path = request.path.partition("?")[0].strip("/").split("/")
        if path == ["v2", "health", "ready"]:
            return Scripted(200, {"ready": True})
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return Scripted(401, {"error": "the key is unknown or revoked"})
        if path == ["v2"]:
            return Scripted(200, {"name": "penstock", "version": "9.9", "extensions": []})
        if path[:2] == ["v2", "models"]:
            return self._model(request, path[2], path[-1])
        return self._control(request, path[2:])

    def _model(self, request: Request, name: str, last: str) -> Scripted:
        model = self.models.get(name)
        if model is None:
            return Scripted(404, {"error": f"unknown model {name!r}"})
        if last == "config":
            return Scripted(200, {"name": name, "max_batch_size": model.max_batch})
        if last == "infer":
            return self._infer(request, name, model)
        return Scripted(
            200, {"name": name, "versions": ["1"], "platform": "x", "inputs": model.inputs, "outputs": model.outputs}
        )

    def _infer(self, request: Request, name: str, model: FakeModel) -> Scripted:
        head, inputs = decoded(request)
        declared = {tensor["name"]: tensor["datatype"] for tensor in model.inputs}
        for tensor in head["inputs"]:
            if declared.get(tensor["name"]) != tensor["datatype"]:
                return Scripted(400, {"error": f"tensor {tensor['name']!r}: wrong name or datatype"})
            if model.max_batch and tensor["shape"][0] > model.max_batch:
                return Scripted(400, {"error": f"a batch of {tensor['shape'][0]} rows"})
        outputs = model.run(inputs)
        wanted = [output["name"] for output in head["outputs"]] if "outputs" in head else list(outputs)
        return encoded(name, model.version, head.get("id"), {key: outputs[key] for key in wanted})

    def _control(self, request: Request, path: list[str]) -> Scripted:
        if request.method == "POST" and path[-1] == "versions":
            return Scripted(201, version_record(len(self._push(request))))
        if path[-1] == "deployment":
            return Scripted(200, {**deployment_record(path[1]), **(request.json if request.method == "PUT" else {})})
        if request.method == "GET":
            return Scripted(200, READS[path[0]] if len(path) == 1 else _one(path))
        if path[-1] in {"load", "unload"}:
            version = request.json.get("version", 3)
            return Scripted(200, {"name": path[1], "version": version, "state": path[-1].upper()})
        if path == ["keys"]:
            return Scripted(201, {**KEY, **request.json, "key": "psk_new_secret"})
        return Scripted(200, {"done": True})

    def _push(self, request: Request) -> list[tuple[dict[str, Any], bytes]]:
        self.pushed.append(parts_of(request))
        return self.pushed


KEY = {
    "id": "k1",
    "name": "ci",
    "owner": "team",
    "role": "predict",
    "models": ["*"],
    "grants": [],
    "created": 1.7e9,
    "expires": 0,
    "revoked": False,
}


def version_record(number: int = 1) -> dict[str, Any]:
    return {
        "version": number,
        "state": "READY",
        "reason": "",
        "format": "onnx",
        "platform": "onnx_onnxv1",
        "size": 1234,
        "digest": "ab" * 32,
        "entry": "",
        "max_batch": 32,
        "default_deadline_ms": 30000,
        "queue_bound": 2048,
        "warmup": [1, 8],
        "signature": {
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2], "labels": ["no", "yes"]}],
        },
        "tags": {"stage": "test"},
        "owner": "team",
        "created": 1.7e9,
        "wanted": "auto",
    }


def model_record(name: str = "digits") -> dict[str, Any]:
    return {
        "name": name,
        "owner": "team",
        "aliases": {"champion": 1},
        "versions": [version_record(2), version_record(1)],
    }


def deployment_record(name: str = "digits") -> dict[str, Any]:
    return {
        "model": name,
        "replicas": 1,
        "max_replicas": 4,
        "cpus": 0.5,
        "gpus": 0.25,
        "accelerator": "L4",
        "revision": 3,
    }


def replica_record(**fields: Any) -> dict[str, Any]:
    return {
        "instance": "replica-1",
        "host": "h1",
        "pid": 7,
        "device": "cuda:0",
        "state": "READY",
        "reason": "",
        "in_flight": 1,
        "queue_wait_ms": 2.0,
        "service_ms": 4.0,
        "longest_ms": 6.0,
        "rows": 8.0,
        "busy": 0.5,
        **fields,
    }


def status_record(**fields: Any) -> dict[str, Any]:
    version = {
        "version": 2,
        "aliases": ["champion"],
        "state": "READY",
        "reason": "",
        "ready": 1,
        "waiting": 5,
        "oldest_ms": 1500.0,
        "in_flight": 3,
        "demand": 120,
        "where": [replica_record()],
    }
    gateway = {"instance": "gateway-1", "host": "h2", "pid": 9, "ready": True, "revision": 40, "open": ["digits/2"]}
    model = {"name": "digits", "deployment": deployment_record(), "versions": [version]}
    return {
        "revision": 42,
        "repository": True,
        "listening": True,
        "models": [model],
        "gateways": [gateway],
        **fields,
    }


READS: dict[str, Any] = {
    "status": status_record(),
    "whoami": {"name": "ci", "owner": "team", "role": "admin", "models": ["*"], "grants": ["code"]},
    "models": {"models": [model_record()]},
    "architectures": {"architectures": [{"name": "mlp", "description": "layers"}]},
    "keys": {"keys": [KEY]},
}


def _one(path: list[str]) -> dict[str, Any]:
    aliases = {"champion": 1}
    return version_record(aliases.get(path[3]) or int(path[3])) if "versions" in path else model_record(path[1])


# --- bodies -------------------------------------------------------------------------------------------------------


def decoded(request: Request) -> tuple[dict[str, Any], Arrays]:
    """An inference request → its JSON and its arrays, both forms of data."""
    cut = int(request.headers.get(HEADER.lower(), len(request.body)))
    head = json.loads(request.body[:cut])
    arrays: Arrays = {}
    for tensor in head["inputs"]:
        row = DATATYPES[tensor["datatype"]]
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[tensor["name"]] = np.array(tensor["data"], dtype=row.numpy).reshape(tensor["shape"])
        else:
            data = request.body[cut : cut + size]
            arrays[tensor["name"]] = to_array(row, tuple(tensor["shape"]), data)
            cut += size
    assert cut == len(request.body)
    return head, arrays


def encoded(name: str, version: str, request_id: str | None, outputs: Arrays) -> Scripted:
    heads, blobs = [], []
    for key, array in outputs.items():
        row = next(row for row in DATATYPES.values() if row.numpy == array.dtype)
        blobs.append(bytes(to_wire(row, array)))
        parameters = {"binary_data_size": len(blobs[-1])}
        heads.append({"name": key, "datatype": row.name, "shape": list(array.shape), "parameters": parameters})
    head = json.dumps({"model_name": name, "model_version": version, "id": request_id or "", "outputs": heads}).encode()
    return Scripted(200, head + b"".join(blobs), {HEADER: str(len(head))})


def parts_of(request: Request) -> tuple[dict[str, Any], bytes]:
    """The manifest and the artifact of a push, which must come in this order."""
    import io

    found: list[tuple[str, bytes]] = []

    def on_field(part: Any) -> None:
        found.append((part.field_name.decode(), part.value))

    def on_file(part: Any) -> None:
        part.file_object.seek(0)
        found.append((part.field_name.decode(), part.file_object.read()))
        part.close()

    headers = {"Content-Type": request.headers["content-type"].encode()}
    parse_form(headers, io.BytesIO(request.body), on_field, on_file)
    assert [name for name, _ in found] == ["manifest", "artifact"]
    return json.loads(found[0][1]), found[1][1]


# --- the wire -----------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeServer

    def _any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        answer = self.fake.answer(Request(self.command, self.path, headers, body))
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _any

    def log_message(self, *args: Any) -> None:
        pass


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: Any) -> None:
        """A client that left is part of some tests."""


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    class Handler(_Handler):
        pass

    with _Http(("127.0.0.1", 0), Handler) as http:
        fake = FakeServer(http.server_address[1])
        Handler.fake = fake
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            http.shutdown()
            thread.join(5)
