"""Attacks that a stranger runs. Each is a function that carries one out and asserts that it is repelled.

They know of a `Target` what a stranger knows, a key of the role deploy apart, and what the machine's owner can see:
its memory, its files, its log.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2

from tests.gateway.wire import Answer, Wire, post
from tests.graphs import graph, identity, tensor
from tests.production import asked_patiently

MIB = 1 << 20
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing here is encrypted, and a client that is given a context does not read all certificates anew."""
FORGED = "\r\nlevel=info event=forged\x1b[2J\u2028"
"""Text that would make a line of its own in a log, and clear the screen of its reader."""
LIMITS = {
    "max_body_bytes": 4 * MIB,
    "max_decoded_bytes": 8 * MIB,
    "header_timeout_s": 1.0,
    "body_timeout_s": 1.0,
    "write_timeout_s": 1.0,
    "keep_alive_s": 1.0,
}
"""Settings of a server under attack: as always, only smaller, so that nobody has to wait long."""
LATE_S = 3.5
"""By then whatever exceeds one of those times must have been ended."""
FLAT = 48 * MIB
"""What a server's memory may grow by while it is attacked."""


@dataclass(frozen=True)
class Target:
    """`home`: the server's folder, in a folder of its own. `logs` lie where they like, `logged` tells what stands in
    them. `processes`: those that take what clients send. `key`: of the role deploy; `coder` has the grant to push code,
    too."""

    url: str
    grpc: str
    control: str
    key: str
    coder: str
    home: Path
    logs: frozenset[Path]
    logged: Callable[[], str]
    processes: list[psutil.Process]
    wires: list[Wire] = field(default_factory=list)

    async def wire(self) -> Wire:
        """A connection, closed when the attack is over."""
        self.wires.append(await Wire.to(int(self.url.rpartition(":")[2])))
        return self.wires[-1]

    async def hang_up(self) -> None:
        while self.wires:
            await self.wires.pop().close()

    def at(self, path: str) -> str:
        """Where it is served."""
        return (self.control if path.startswith("/api/v1") else self.url) + path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        soon = httpx.Limits(keepalive_expiry=LIMITS["keep_alive_s"] / 4)  # or the server closes it under a request
        options: dict[str, Any] = {"timeout": 60, "verify": PLAIN, "limits": soon}
        async with httpx.AsyncClient(base_url=self.url, headers=self.bearer, **options) as client:
            yield client

    async def infer(self, model: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http() as http:
            return await http.post(f"/v2/models/{model}/infer", content=content, headers=headers)

    async def push(self, model: str, manifest: dict[str, Any], artifact: bytes, file: str = "a") -> httpx.Response:
        parts: dict[str, Any] = {"manifest": (None, json.dumps(manifest)), "artifact": (file, artifact)}
        key = {"Authorization": f"Bearer {self.coder if manifest['format'] == 'python' else self.key}"}
        async with self.http() as http:
            return await http.post(self.at(f"/api/v1/models/{model}/versions"), files=parts, headers=key)

    async def healthy(self) -> None:
        """Others are served meanwhile, and soon."""
        begun = time.monotonic()
        answer = await self.infer("echo", VALID)
        assert answer.status_code == 200, answer.text
        assert time.monotonic() - begun < 15

    async def call(self, method: str, body: bytes) -> str:
        """The code of a gRPC call."""
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(self.grpc, options=options) as channel:
            path = f"/inference.GRPCInferenceService/{method}"
            call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
            try:
                await call(body, metadata=[("x-api-key", self.key)], timeout=30)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return "OK"

    @asynccontextmanager
    async def flat(self, most: int = FLAT) -> AsyncIterator[None]:
        """The memory of no process of the server grows by more than `most` bytes at any moment of the block."""
        before = self._memory()
        grown = 0
        over = asyncio.Event()

        async def watch() -> None:
            nonlocal grown
            while not over.is_set():
                now = await asyncio.to_thread(self._memory)
                grown = max(grown, *(after - size for after, size in zip(now, before, strict=True)))
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), 0.01)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            over.set()
            await watching
        assert grown <= most, f"memory grew by {grown / MIB:.0f} MiB"

    def _memory(self) -> list[int]:
        return [process.memory_info().rss for process in self.processes]


Attack = Callable[[Target], Awaitable[None]]
VALID = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}


FURNITURE = ("echo", "single", "text", "picky")


async def furnish(target: Target) -> None:
    """Have the models there that attacks are aimed at."""
    reshape = helper.make_node("Reshape", ["x", "three"], ["y"], name=FORGED)
    three = helper.make_tensor("three", TensorProto.INT64, [2], [-1, 3])
    picky = graph([reshape], [tensor("x", "FP32", "n", "m")], [tensor("y", "FP32", "n", "k")], [three])
    models = {
        "echo": (identity(), {}),
        "single": (identity(), {"max_batch": 0}),
        "text": (identity("BYTES"), {}),
        "picky": (picky, {"max_batch": 0}),
    }
    assert tuple(models) == FURNITURE
    async with target.http() as http, asyncio.TaskGroup() as group:
        for name, (artifact, more) in models.items():
            if (await http.get(target.at(f"/api/v1/models/{name}"))).status_code == 404:
                group.create_task(_pushed(target, name, {"format": "onnx", **more}, artifact))


async def _pushed(target: Target, name: str, manifest: dict[str, Any], artifact: bytes) -> None:
    answer = await asked_patiently(lambda: target.push(name, manifest, artifact))
    assert answer.status_code == 201, answer.text


def tensors(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}]}


def around(target: Target) -> set[str]:
    """Every file beside the server's home."""
    outside = target.home.parent
    return {str(path) for path in outside.rglob("*") if target.home not in path.parents and path not in target.logs}


# --- names and errors ---------------------------------------------------------------------------------------------

NAMES = (
    "%2e%2e",
    "..%2fx",
    "%2e%2e%2fx",
    "%2fetc%2fpasswd",
    "a%00b",
    "a%0d%0aX: y",
    "..%5cx",
    "%ef%bc%8e%ef%bc%8e%2fx",
    "%2ehidden",
    "-rf",
    "a" * 129,
    "a b",
    "%c3%28",
    "stats",
)


async def paths_in_names(target: Target) -> None:
    """Model names, versions, aliases, file names, key ids with paths in them."""
    before = around(target)
    async with target.http() as http:
        for name in NAMES:
            push = await target.push(name, {"format": "onnx"}, identity(), file="../../../evil")
            assert push.status_code in (400, 404, 405), f"{name}: {push.status_code}"
            for method, path in (
                ("POST", f"/v2/models/{name}/infer"),
                ("POST", f"/v2/models/echo/versions/{name}/infer"),
                ("GET", f"/v2/models/{name}"),
                ("GET", f"/api/v1/models/echo/versions/{name}"),
                ("DELETE", f"/api/v1/keys/{name}"),
                ("POST", f"/v2/repository/models/{name}/load"),
            ):
                answer = await http.request(method, target.at(path), json=VALID if path.endswith("infer") else {})
                assert answer.status_code in (400, 403, 404, 405) or path == "/v2/models/stats", (
                    f"{path}: {answer.text}"
                )
            alias = await http.put(target.at(f"/api/v1/models/echo/aliases/{name}"), json={"version": 1})
            assert alias.status_code in (400, 404, 405) or name == "stats", f"alias {name}"
    named = await target.push("fine", {"format": "onnx"}, identity(), file="../../../../evil")
    assert named.status_code == 201
    assert around(target) == before


LEAKS = (
    "Traceback",
    ".py",
    "/",
    "\\",
    "onnxruntime",
    "msgspec",
    "Error",
    "0x",
    "object at",
    "penstock_",
    "site-packages",
)
"""What no answer to a bad request has in it."""

BAD: tuple[Any, ...] = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe",
    b'{"inputs": 1}',
    b'{"inputs": [1]}',
    b'{"inputs": [{}]}',
    b'{"inputs": [{"name": 1, "datatype": "FP32", "shape": [1], "data": []}]}',
    b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1,1], "data": [1]}], "parameters": {"a": {"b": 1}}}',
    tensors(datatype="FP99"),
    tensors(datatype="FP16"),
    tensors(shape=["a"]),
    tensors(shape=[1.5]),
    tensors(shape=None),
    tensors(data="abc"),
    tensors(data=["a", "b"]),
    tensors(data=[[1], [2]]),
    tensors(data=[[[[1]]]]),
    tensors(data={"a": 1}),
    tensors(name="y"),
    tensors(parameters={"binary_data_size": "8"}),
    tensors(parameters={"binary_data_size": 8}),
    tensors(parameters={"shared_memory_region": "r"}),
    {**tensors(), "outputs": [{"name": "none"}]},
    {**tensors(), "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
    {**tensors(), "outputs": [{"name": "y", "parameters": {"classification": "two"}}]},
    {**tensors(), "parameters": {"priority": -1}},
    {**tensors(), "parameters": {"priority": 2**70}},
    {**tensors(), "parameters": {"timeout": "soon"}},
    {**tensors(), "parameters": {"sequence_id": 7}},
    {**tensors(), "id": 7},
)


async def errors_that_leak(target: Target) -> None:
    """A corpus of bad requests, by REST and gRPC, and a model that fails: no answer tells of our insides."""
    texts = []
    async with target.http() as http:
        for body in BAD:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = await http.post("/v2/models/echo/infer", content=content)
            assert 400 <= answer.status_code < 502, f"{content!r}: {answer.status_code}"
            assert answer.status_code != 500, f"{content!r}: {answer.text}"
            texts.append(answer.text)
        failed = await target.infer("picky", tensors())
        assert (failed.status_code, set(failed.json())) == (500, {"error", "error_id"}), failed.text
        texts.append(failed.json()["error"])
        for method, path, sent in (
            ("POST", "/api/v1/keys", b"{"),
            ("PUT", "/api/v1/models/echo/aliases/a", b'{"version": []}'),
            ("PUT", "/api/v1/models/echo/versions/1/tags", b'{"a": 1}'),
            ("POST", "/v2/repository/index", b'{"ready": "yes"}'),
            ("POST", "/v2/repository/models/echo/load", b'{"parameters": []}'),
            ("GET", "/api/v1/models/nobody", b""),
            ("GET", "/nowhere", b""),
        ):
            headers = {"Content-Type": "application/json"}
            answer = await http.request(method, target.at(path), content=sent, headers=headers)
            assert 400 <= answer.status_code < 500, answer.text
            texts.append(answer.text)
        noted = await http.get(target.at("/api/v1/models/picky/versions/1"))
        assert "Reshape" in noted.json()["reason"], "what failed when it was warmed is not told"
        texts.append(noted.json()["reason"])
    _tell_nothing(texts)


async def artifacts_that_leak(target: Target) -> None:
    """Artifacts that do not load: why they do not, and no more."""
    texts = []
    for artifact in (b"x", b"PK\x03\x04", struct.pack("<Q", 2**60) + b"{}"):
        for kind in ("onnx", "sklearn"):
            manifest = {"format": kind} | ({} if kind == "onnx" else {"example": tensors()})
            answer = await target.push("broken", manifest, artifact)
            assert answer.status_code == 400, answer.text
            texts.append(answer.text)
    _tell_nothing(texts)


def _tell_nothing(texts: list[str]) -> None:
    found = [(leak, text) for text in texts for leak in LEAKS if leak in text.replace('\\"', "").replace("\\u", "")]
    assert not found, found[:5]


# --- sizes --------------------------------------------------------------------------------------------------------


async def huge_chunked_bodies(target: Target) -> None:
    """A body without end: 413 once it is too large, and the connection is closed."""
    wire = await target.wire()
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {target.key}\r\n"
    async with target.flat():
        await wire.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"%x\r\n" % MIB + b"[" * MIB + b"\r\n"
        with suppress(ConnectionError):
            for _ in range(64):
                await wire.send(piece)
            await wire.send(b"0\r\n\r\n")
        answer = await refused(wire)
    assert answer is None or answer.status == 413, answer
    await target.healthy()


async def refused(wire: Wire, within: float = 10.0) -> Answer | None:
    """The answer, or None where the connection was closed instead."""
    try:
        return await wire.answer(within)
    except ConnectionError:
        return None


async def declared_lengths(target: Target) -> None:
    """Lengths beyond the limit are refused at once; those within it are not allocated before the bytes come."""
    for length, status in ((10**12, 413), (LIMITS["max_body_bytes"] + 1, 413), (10**30, 400)):
        wire = await target.wire()
        await wire.send(post("/v2/models/echo/infer", b"{", f"Authorization: Bearer {target.key}", length=int(length)))
        answer = await wire.answer(5.0)  # one that waited for the body would be 408
        assert answer.status == status, answer
    async with target.flat():
        wires = [await target.wire() for _ in range(60)]
        declared = post("/v2/models/echo/infer", b"{", f"X-API-Key: {target.key}", length=4 * MIB)
        for wire in wires:
            await wire.send(declared)
        await target.healthy()


async def tiny_chunks(target: Target) -> None:
    """A body in chunks of one byte each, for ever: progress does not buy time."""
    wire = await target.wire()
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {target.key}\r\n"
    await wire.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
    await _drip(wire, b"1\r\n \r\n" * 50)


async def many_small_chunks(target: Target) -> None:
    """Four hundred thousand of them at once cost no more memory than their bytes."""
    body = b" " * 400_000 + json.dumps(VALID).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    wire = await target.wire()
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {target.key}\r\n"
    async with target.flat(16 * MIB):
        await wire.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        answer = await wire.answer(10)
    assert answer.status == 200, answer


async def _drip(wire: Wire, piece: bytes) -> None:
    """Send `piece` again and again; the server must end it before LATE_S."""
    end = time.monotonic() + LATE_S
    closing = asyncio.create_task(wire.closed(LATE_S))
    while not closing.done() and time.monotonic() < end:
        with suppress(ConnectionError):
            await wire.send(piece)
        await asyncio.wait([closing], timeout=0.1)
    assert await closing, "the connection is still open"


async def lying_shapes_in_json(target: Target) -> None:
    """Dimensions that are negative, zero, overflow, or whose product no data can have."""
    shapes: list[Any] = [
        [2**62],
        [2**62, 0],
        [0, 2**62],
        [2**32, 2**32],
        [-1, 2],
        [-1, -1],
        [1, 3],
        [2, 2],
        [0, 0],
        [2**63, 2],
        [2**64, 2],
        [2**200],
        [1] * 40,
        [1] * 100_000,
        [],
    ]
    async with target.flat():
        for shape in shapes:
            data: list[int] = [] if 0 in shape else [1, 2]
            for model in ("echo", "single"):
                if (model, shape) == ("single", [0, 0]):
                    continue
                answer = await target.infer(model, tensors(shape=shape, data=data))
                assert answer.status_code == 400, f"{model} {str(shape)[:50]}: {answer.status_code} {answer.text}"
        many = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}] * 50_000}
        assert (await target.infer("echo", many)).status_code == 413
        assert (await target.infer("echo", {**VALID, "outputs": [{"name": "y"}] * 50_000})).status_code == 413
        parameters = {f"p{number}": 1 for number in range(60_000)}
        assert (await target.infer("echo", {**VALID, "parameters": parameters})).status_code == 413
    await target.healthy()


def binary(size: Any, data: bytes, shape: Any = (1, 2), datatype: str = "FP32") -> tuple[bytes, int]:
    """A body with binary data, and the length of its JSON."""
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}]}
    ).encode()
    return head + data, len(head)


async def lying_sizes_in_binary(target: Target) -> None:
    """binary_data_size, Inference-Header-Content-Length, and lengths inside BYTES that are not what is there."""
    lies = [
        binary(4, b"\0" * 4),
        binary(8, b"\0" * 4),
        binary(8, b"\0" * 16),
        binary(16, b"\0" * 16),
        binary(2**62, b"\0" * 8),
        binary(-8, b"\0" * 8),
        binary(8.0, b"\0" * 8),
        binary(0, b"", [0, 2**40]),
        binary(0, b"", [2**40, 0]),
        binary(8, b"\0" * 8, [2**61, 2]),
    ]
    texts = [
        binary(8, struct.pack("<I", 2**32 - 1) + b"abcd", [1, 1], "BYTES"),
        binary(4, struct.pack("<I", 5), [1, 1], "BYTES"),
        binary(3, b"abc", [1, 1], "BYTES"),
        binary(4, struct.pack("<I", 0), [1, 2**30], "BYTES"),
        binary(9, struct.pack("<I", 4) + b"abcde", [1, 1], "BYTES"),
    ]
    async with target.flat():
        for model, bodies in (("single", lies), ("text", texts)):
            for body, length in bodies:
                answer = await target.infer(model, body, **{"Inference-Header-Content-Length": str(length)})
                assert answer.status_code == 400, f"{model} {body!r}: {answer.status_code} {answer.text}"
        body, length = binary(8, b"\0" * 8)
        for text in ("-1", str(len(body) + 1), "9" * 40, "x", "1e1", "0x10", "+5"):
            answer = await target.infer("single", body, **{"Inference-Header-Content-Length": text})
            assert answer.status_code == 400, f"{text}: {answer.text}"


def request(shape: list[int], raw: bytes | None = None, datatype: str = "FP32") -> bytes:
    message = service_pb2.ModelInferRequest(model_name="single" if datatype == "FP32" else "text")
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return bytes(message.SerializeToString())


async def lying_sizes_in_grpc(target: Target) -> None:
    lies = [
        request([1, 2], b"\0" * 4),
        request([1, 2], b"\0" * 12),
        request([2**62, 2], b"\0" * 8),
        request([-1, 2], b"\0" * 8),
        request([0, 2**40], b""),
        request([1, 2]),
        request([1, 1], struct.pack("<I", 2**31) + b"x", "BYTES"),
        request([1, 2**30], struct.pack("<I", 0), "BYTES"),
    ]
    async with target.flat():
        for body in lies:
            assert await target.call("ModelInfer", body) == "INVALID_ARGUMENT", body


async def floods_of_grpc_fields(target: Target) -> None:
    """A message of a million empty inputs, of which protobuf would make objects forty times its size."""
    async with target.flat():
        for field in (5, 6, 7):
            flood = bytes([field << 3 | 2, 0]) * 1_000_000
            assert await target.call("ModelInfer", b"\x0a\x04echo" + flood) == "RESOURCE_EXHAUSTED", field
        too_large = b"\x0a\x04echo" + b"\x3a" + b"\x84\x80\x80\x02" + b"\0" * (4 * MIB + 4)
        assert await target.call("ModelInfer", too_large) == "RESOURCE_EXHAUSTED"


# --- bombs and depths ---------------------------------------------------------------------------------------------


@cache
def compressed(window: int) -> bytes:
    stream = zlib.compressobj(1, zlib.DEFLATED, window)
    return b"".join([stream.compress(b" " * MIB) for _ in range(100)]) + stream.flush()


async def compressed_bombs(target: Target) -> None:
    """A hundred kilobytes that would become a hundred megabytes: 413, whatever the encoding."""
    async with target.flat():
        for encoding, window in (("gzip", 31), ("deflate", 15)):
            bomb = compressed(window)
            answer = await target.infer("echo", bomb, **{"Content-Encoding": encoding})
            assert answer.status_code == 413, f"{encoding}: {answer.status_code} {answer.text}"
            broken = await target.infer("echo", bomb[:100], **{"Content-Encoding": encoding})
            assert broken.status_code == 400, broken.text
        for encoding in ("br", "gzip, gzip", "zstd", "x"):
            answer = await target.infer("echo", VALID, **{"Content-Encoding": encoding})
            assert answer.status_code == 415, f"{encoding}: {answer.text}"


@cache
def archived() -> bytes:
    """Half a gigabyte of zeros as a skops file."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("schema.json", json.dumps({"__class__": "x", "protocol": 2}))
        with archive.open("0.npy", "w", force_zip64=True) as entry:
            zeros = b"\0" * (16 * MIB)
            for _ in range(32):
                entry.write(zeros)
    return file.getvalue()


async def archive_bombs(target: Target) -> None:
    """A skops file that would unpack to half a gigabyte is refused before it is unpacked."""
    bomb = archived()
    await target.push("bomb", {"format": "sklearn", "example": tensors()}, b"")  # from now on its library is there
    async with target.flat(2 * FLAT):
        answer = await target.push("bomb", {"format": "sklearn", "example": tensors()}, bomb)
    assert answer.status_code == 400, answer.text
    assert "unpack" in answer.json()["error"], answer.text


async def deep_json(target: Target) -> None:
    """A hundred thousand brackets, wherever JSON is taken."""
    deep = b"[" * 100_000
    async with target.flat(), target.http() as http:
        for place in (
            b"%b",
            b'{"inputs": %b',
            b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": %b',
        ):
            for body in (place % deep, place % (deep + b"1" + b"]" * 100_000), place % (b'{"a":' * 100_000)):
                answer = await target.infer("echo", body)
                assert answer.status_code == 400, answer.text
        for method, path in (
            ("POST", "/v2/repository/index"),
            ("PUT", "/api/v1/models/echo/aliases/a"),
            ("PUT", "/api/v1/models/echo/versions/1/tags"),
        ):
            body = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
            headers = {"Content-Type": "application/json"}
            answer = await http.request(method, target.at(path), content=body, headers=headers)
            assert answer.status_code == 400, answer.text
            assert "nested" in answer.json()["error"], answer.text
    manifest = '{"format": "onnx", "tags": ' + '{"a":' * 5000 + "}" * 5000 + "}"
    async with target.http() as http:
        parts: dict[str, Any] = {"manifest": (None, manifest), "artifact": ("a", b"x")}
        answer = await http.post(target.at("/api/v1/models/deep/versions"), files=parts)
    assert answer.status_code == 400, answer.text
    await target.healthy()


async def deep_protobuf(target: Target) -> None:
    """Groups within groups, which no message of the protocol has: refused by the first of them."""
    for depth in (30, 100_000):
        groups = b"\x7b" * depth + b"\x7c" * depth
        code = await target.call("ModelInfer", request([1, 1], b"\0\0\x80\x3f") + groups)
        assert code == "INVALID_ARGUMENT", f"{depth}: {code}"
    await target.healthy()


async def what_json_cannot_carry(target: Target) -> None:
    """NaN, infinities, numbers beyond a datatype, lone surrogates: an error, in and out, and never a 500."""
    for number in ("NaN", "Infinity", "-Infinity", "1e400", "1e39", "0x10", "01", "1_0", "+1", ".5", "1."):
        body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [%b]}]}' % number.encode()
        answer = await target.infer("echo", body)
        assert answer.status_code == 400, f"{number}: {answer.status_code} {answer.text}"
    for text in (rb"\ud800", rb"\udfff\ud800", b"\xed\xa0\x80", b"\x00", rb"\x41"):
        body = b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": ["%b"]}]}' % text
        answer = await target.infer("text", body)
        assert answer.status_code == 400, f"{text!r}: {answer.status_code} {answer.text}"
        answer = await target.infer("echo", b'{"id": "%b", ' % text + json.dumps(VALID).encode()[1:])
        assert answer.status_code == 400, f"{text!r}: {answer.status_code} {answer.text}"
    for value in (np.nan, np.inf, -np.inf):
        body, length = binary(4, np.array([value], "<f4").tobytes(), [1, 1])
        answer = await target.infer("echo", body, **{"Inference-Header-Content-Length": str(length)})
        assert answer.status_code == 400, f"{value}: {answer.text}"
        assert "binary" in answer.json()["error"]
    twice = b'{"inputs": [], "id": "a", "id": "b", ' + json.dumps(VALID).encode()[1:]
    answer = await target.infer("echo", twice)
    assert (answer.status_code, answer.json().get("id")) == (200, "b"), "of duplicate keys the last wins"


async def duplicate_tensors(target: Target) -> None:
    one = VALID["inputs"][0]
    answer = await target.infer("echo", {"inputs": [one, one]})
    assert answer.status_code == 400
    assert "more than once" in answer.json()["error"] or "no such input" in answer.json()["error"]
    outputs = [{"name": "y"}, {"name": "y"}]
    assert (await target.infer("echo", {**VALID, "outputs": outputs})).status_code == 400


# --- connections --------------------------------------------------------------------------------------------------

HIDDEN = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
"""The request that is smuggled: its answer would give it away."""
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BEGUN = b"POST /v2/nowhere HTTP/1.1\r\nHost: t\r\n"


def smuggled() -> Iterator[tuple[str, bytes]]:
    length = b"Content-Length: %d\r\n" % len(HIDDEN)
    yield "CL.TE", BEGUN + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + HIDDEN
    yield "TE.CL", BEGUN + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN
    yield "two lengths", BEGUN + b"Content-Length: 0\r\n" + length + b"\r\n" + HIDDEN
    yield "two lengths in one", BEGUN + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN
    yield "a signed length", BEGUN + b"Content-Length: +0\r\n\r\n" + HIDDEN
    yield "a negative length", BEGUN + b"Content-Length: -1\r\n\r\n" + HIDDEN
    yield "an empty length", BEGUN + b"Content-Length: \r\n\r\n" + HIDDEN
    yield "a length in hex", BEGUN + b"Content-Length: 0x0\r\n\r\n" + HIDDEN
    yield "another coding", BEGUN + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN
    yield "chunked, then more", BEGUN + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN
    yield "chunked twice", BEGUN + b"Transfer-Encoding: identity\r\n" + CHUNKED + length + b"\r\n0\r\n\r\n" + HIDDEN
    yield "a space before the colon", BEGUN + b"Content-Length : 0\r\n\r\n" + HIDDEN
    yield "a folded header", BEGUN + b"Content-Length: 0\r\n Transfer-Encoding: chunked\r\nX:\r\n y\r\n\r\n" + HIDDEN
    yield "bare line feeds", b"POST /v2/nowhere HTTP/1.1\nHost: t\nContent-Length: 0\n\n" + HIDDEN
    yield "a bare return", BEGUN + b"X: a\rContent-Length: 0\r\n\r\n" + HIDDEN
    yield "NUL", BEGUN + b"X: a\0b\r\nContent-Length: 0\r\n\r\n" + HIDDEN
    yield "a chunk size with a sign", BEGUN + CHUNKED + b"\r\n+0\r\n\r\n" + HIDDEN
    yield "a chunk size in 0x", BEGUN + CHUNKED + b"\r\n0x0\r\n\r\n" + HIDDEN
    yield "a chunk size too large", BEGUN + CHUNKED + b"\r\n10000000000000000\r\n\r\n" + HIDDEN
    yield "a chunk without its end", BEGUN + CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n" + HIDDEN
    yield "a chunk ended by a line feed", BEGUN + CHUNKED + b"\r\n1\na\n0\n\n" + HIDDEN
    yield "no version", b"GET /v2/nowhere\r\n\r\n" + HIDDEN
    yield "version 3", b"GET /v2/nowhere HTTP/3.0\r\n\r\n" + HIDDEN
    yield "HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN


async def smuggling(target: Target) -> None:
    """One request or none, and the connection closed: what is hidden behind it is never answered."""
    names, data = zip(*smuggled(), strict=True)
    received = await asyncio.gather(*(_exchanged(target, each) for each in data))
    through = [name for name, found in zip(names, received, strict=True) if not _alone(found)]
    assert not through


async def _exchanged(target: Target, data: bytes) -> bytes:
    wire = await target.wire()
    with suppress(ConnectionError):
        await wire.send(data)
    return await _everything(wire)


def _alone(received: bytes) -> bool:
    return received.startswith(b"HTTP/1.1 4") and received.count(b"HTTP/1.1 ") == 1 and b'"live"' not in received


async def _everything(wire: Wire, within: float = LATE_S) -> bytes:
    """All that comes before the server closes."""
    received = bytearray()
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(within):
            while piece := await wire.reader.read(1 << 16):
                received += piece
    return bytes(received)


async def slow_headers(target: Target) -> None:
    """Slow-loris: a header every now and then."""
    wires = [await target.wire() for _ in range(20)]
    for wire in wires:
        await wire.send(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: t\r\n")
    await asyncio.gather(*(_drip(wire, b"X-A: b\r\n") for wire in wires), target.healthy())


async def slow_body(target: Target) -> None:
    """A byte every now and then of a body of which the length is known."""
    wires = [await target.wire() for _ in range(20)]
    for wire in wires:
        await wire.send(post("/v2/models/echo/infer", b"{", f"X-API-Key: {target.key}", length=100_000))
    await asyncio.gather(*(_drip(wire, b" ") for wire in wires), target.healthy())


async def slow_bodies_elsewhere(target: Target) -> None:
    """The same at a route that is not infer."""
    wire = await target.wire()
    await wire.send(post("/v2/repository/index", b"{", f"X-API-Key: {target.key}", length=10_000))
    await _drip(wire, b" ")


async def slow_grpc(target: Target) -> None:
    """A call whose message never comes."""
    async with grpc.aio.insecure_channel(target.grpc) as channel:
        method: Any = channel.stream_unary(
            "/inference.GRPCInferenceService/ModelInfer", request_serializer=bytes, response_deserializer=bytes
        )
        call = method(metadata=[("x-api-key", target.key)])
        await target.healthy()
        ended = asyncio.ensure_future(call.code())
        await asyncio.wait([ended], timeout=LATE_S)
        call.cancel()
        assert await ended is grpc.StatusCode.DEADLINE_EXCEEDED, "the call was held open"


async def slow_readers(target: Target) -> None:
    """A client that asks for much and takes none of it: cut off, its answer thrown away."""
    rows = 1_000_000
    body, length = binary(4 * rows, b"\0" * (4 * rows), [1, rows])
    head = {"X-API-Key": target.key, "Inference-Header-Content-Length": str(length)}
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", target.port))
    asked = json.loads(body[:length])
    asked["parameters"] = {"binary_data_output": True}
    told = json.dumps(asked).encode()
    head["Inference-Header-Content-Length"] = str(len(told))
    message = post(
        "/v2/models/single/infer", told + body[length:], *(f"{name}: {value}" for name, value in head.items())
    )
    await loop.sock_sendall(raw, message)
    await target.healthy()
    taken = len(await asyncio.wait_for(loop.sock_recv(raw, 1), 30))  # from here on the server has more to say
    await asyncio.sleep(LATE_S)
    with suppress(ConnectionError):
        while piece := await asyncio.wait_for(loop.sock_recv(raw, 1 << 16), 10):
            taken += len(piece)
            if taken >= 4 * rows:
                break
    raw.close()
    assert taken < 4 * rows, "all of the answer was kept for a client that did not read"


async def idle_connections(target: Target) -> None:
    """Four hundred that say nothing: others are served, and they are closed in the end."""
    async with target.flat():
        wires = [await target.wire() for _ in range(400)]
        await target.healthy()
        closed = await asyncio.gather(*(wire.closed(LATE_S) for wire in wires))
    assert all(closed), f"{closed.count(False)} are still open"


# --- what runs when it is opened ----------------------------------------------------------------------------------


def pickle_of(command: str) -> bytes:
    """A pickle that runs a shell command when it is loaded, written by hand (protocol 0, pure ASCII)."""
    return b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."


async def pickles(target: Target) -> None:
    """By media type, in BYTES, as artifacts of every format: refused, or carried unopened."""
    marker = target.home.parent / "opened"
    evil = pickle_of(f"touch {marker}")
    for media in ("application/x-pickle", "application/python-pickle", "application/vnd.Pickle; q=1"):
        answer = await target.infer("echo", VALID, **{"Content-Type": media})
        assert answer.status_code == 415, f"{media}: {answer.status_code}"
    text = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": [evil.decode()]}]}
    answer = await target.infer("text", text)
    assert answer.json()["outputs"][0]["data"] == [evil.decode()]
    for kind in ("sklearn", "onnx"):
        manifest = {"format": kind} | ({"example": tensors()} if kind == "sklearn" else {})
        answer = await target.push("evil", manifest, evil)
        assert answer.status_code == 400, f"{kind}: {answer.text}"
    assert not marker.exists()


async def torch_archives(target: Target) -> None:
    """What torch.load would open, under the name of weights, and a .pt2 by a key without the grant."""
    marker = target.home.parent / "opened-by-torch"
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_of(f"touch {marker}"))
        archive.writestr("archive/version", "3\n")
    weights = {"format": "torch", "entry": "mlp", "example": tensors()}
    answer = await target.push("evil", weights, file.getvalue())
    assert answer.status_code == 400, answer.text
    program = {"format": "pt2", "example": tensors(), "allow_code": True}
    answer = await target.push("evil", program, file.getvalue())
    assert answer.status_code == 403, answer.text
    assert not marker.exists()


async def untrusted_types(target: Target) -> None:
    """A skops file with a function of the operating system in it."""
    import os

    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    artifact = skops.io.dumps(FunctionTransformer(func=os.getcwd).fit([[1.0]]))
    answer = await target.push("evil", {"format": "sklearn", "example": tensors()}, artifact)
    assert answer.status_code == 400, answer.text
    assert "not trusted" in answer.json()["error"], answer.text


def weights(header: bytes, data: bytes = b"\0" * 24, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(begin: int, end: int, shape: list[int]) -> str:
    return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]})


async def malformed_weights(target: Target) -> None:
    """safetensors whose header is too long, twice the same, full of holes or overlaps."""
    weight, bias = entry(0, 16, [2, 2]), entry(16, 24, [2])
    bad = {
        "too long": weights(b"{}", length=2**60),
        "longer than the file": weights(b"{}", length=100),
        "no JSON": weights(b"{]"),
        "twice": weights(f'{{"0.weight": {weight}, "0.bias": {bias}, "0.weight": {weight}}}'.encode()),
        "overlap": weights(f'{{"0.weight": {weight}, "0.bias": {entry(8, 16, [2])}}}'.encode(), b"\0" * 16),
        "a hole": weights(f'{{"0.weight": {weight}, "0.bias": {entry(20, 28, [2])}}}'.encode(), b"\0" * 28),
        "past the end": weights(f'{{"0.weight": {weight}, "0.bias": {entry(16, 2**60, [2**58])}}}'.encode()),
        "deep": weights(b'{"a":' * 100_000),
    }
    manifest = {"format": "torch", "entry": "mlp", "example": tensors()}
    async with target.flat(1024 * MIB):
        for name, artifact in bad.items():
            answer = await target.push("weights", manifest, artifact)
            assert answer.status_code == 400, f"{name}: {answer.status_code} {answer.text}"
            assert "error id" not in answer.text, f"{name}: {answer.text}"
    good = await target.push("weights", manifest, weights(f'{{"0.weight": {weight}, "0.bias": {bias}}}'.encode()))
    assert good.status_code == 201, good.text


async def onnx_that_reaches_out(target: Target) -> None:
    """A graph whose weights are said to lie in a file of the server's."""
    outside = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", "4")):
        outside.external_data.add(key=key, value=value)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    artifact = graph([add], [tensor("x", "FP32", "n", 1)], [tensor("y", "FP32", "n", 1)], [outside])
    answer = await target.push("reaching", {"format": "onnx"}, artifact)
    assert answer.status_code == 400, answer.text
    assert "another file" in answer.json()["error"], answer.text
    for broken in (b"", b"\x08", b"\x08\x09:" + b"\xff" * 9, artifact[:-30], b"\x3a\xff\xff\xff\xff\x0f"):
        answer = await target.push("reaching", {"format": "onnx"}, broken)
        assert answer.status_code == 400, f"{broken[:20]!r}: {answer.text}"
        assert "error id" not in answer.text, f"{broken[:20]!r}: {answer.text}"


# --- the log ------------------------------------------------------------------------------------------------------

LOUD = f"""
class Loud:
    def load(self):
        print({FORGED!r}, flush=True)
        raise ValueError({FORGED!r})
    def predict(self, inputs):
        return inputs
"""


async def forged_log_lines(target: Target) -> None:
    """Line breaks and escape sequences in names, ids, reasons and what a model prints: one escaped line each."""
    wire = await target.wire()
    await wire.send(post("/v2/models/x%0d%0aevent=forged/infer", b"{}", f"X-API-Key: {target.key}"))
    answered = await wire.answer()
    assert answered.status in (400, 404), answered
    await target.infer("picky", {**tensors(), "id": FORGED})
    spec = {"name": "x", "datatype": "FP32", "shape": [-1, 1]}
    manifest = {
        "format": "python",
        "entry": "Loud",
        "allow_code": True,
        "signature": {"inputs": [spec], "outputs": [spec]},
    }
    answer = await target.push("loud", manifest, LOUD.encode())
    assert answer.status_code == 400, answer.text
    text = target.logged()
    assert "forged" in text, "the reason is not in the log"
    assert "\x1b" not in text, "an escape sequence stands in the log"
    lines = [
        line for line in text.splitlines() if line.lstrip().startswith(("level=info event=forged", "event=forged"))
    ]
    assert not lines, lines
