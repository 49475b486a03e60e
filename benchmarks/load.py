"""Closed-loop load on HTTP and gRPC: by wrk and ghz where they are found, else by clients of our own.

Each function sends one request over and over from `concurrency` callers for `seconds`, and tells what it saw. The
clients of our own are slower than a server of this kind: their ratios say less, so a result names its generator.
"""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import msgspec
import uvloop
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from loadtests.http_client import Connection, http_request

HERE = Path(__file__).parent
GHZ = "github.com/bojand/ghz/cmd/ghz@v0.93.0"
INFER = "inference.GRPCInferenceService.ModelInfer"


class HttpTarget(NamedTuple):
    url: str
    body: bytes
    headers: dict[str, str] = {}


class GrpcTarget(NamedTuple):
    """`request`: a serialised ModelInferRequest."""

    address: str
    request: bytes
    metadata: dict[str, str] = {}


class Load(NamedTuple):
    """Latencies in milliseconds. `bad`: answers that were not 2xx (or OK), and connections that broke."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad: int

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def cache() -> Path:
    """Where programs built for the benchmarks are kept, outside the checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock" / "bin"


@functools.cache
def wrk() -> str | None:
    return shutil.which("wrk")


@functools.cache
def ghz() -> str | None:
    """ghz from the PATH or our cache, where it is built once if there is a Go compiler."""
    built = cache() / "ghz"
    if found := shutil.which("ghz"):
        return found
    if not built.exists() and shutil.which("go"):
        print(f"building {GHZ} …", flush=True)
        subprocess.run(["go", "install", GHZ], env=os.environ | {"GOBIN": str(cache())}, capture_output=True)
    return str(built) if built.exists() else None


def generators() -> dict[str, str]:
    return {"http": "wrk" if wrk() else "bundled client", "grpc": "ghz" if ghz() else "bundled client"}


# --- HTTP ---------------------------------------------------------------------------------------------------------


def load_http(target: HttpTarget, concurrency: int, seconds: int) -> Load:
    program = wrk()
    if program is None:
        return uvloop.run(_load_http(target, concurrency, seconds))
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(target.body)
        headers = "".join(f"{name}: {value}\n" for name, value in target.headers.items())
        printed = subprocess.run(
            [program, "-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout=10s", "-s", HERE / "post.lua", target.url],
            env=os.environ | {"BODY": str(body), "HEADERS": headers},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return Load(**json.loads(printed.strip().rsplit("\n", 1)[-1]))


async def _load_http(target: HttpTarget, concurrency: int, seconds: float) -> Load:
    request, host, port = http_request(target.url, target.body, target.headers)
    connections = [await Connection.open(host, port) for _ in range(concurrency)]
    latencies: list[float] = []
    bad = 0

    async def call_until(connection: Connection, end: float) -> None:
        nonlocal bad
        while (start := time.perf_counter()) < end:
            status, _ = await connection.call(request)
            latencies.append(time.perf_counter() - start)
            bad += not 200 <= status < 300

    begin = time.perf_counter()
    await asyncio.gather(*(call_until(connection, begin + seconds) for connection in connections))
    spent = time.perf_counter() - begin
    for connection in connections:
        await connection.close()
    return _load(latencies, spent, bad)


def _load(latencies: list[float], seconds: float, bad: int) -> Load:
    return Load(len(latencies), seconds, percentile(latencies, 0.5) * 1e3, percentile(latencies, 0.99) * 1e3, bad)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


# --- gRPC ---------------------------------------------------------------------------------------------------------


def load_grpc(target: GrpcTarget, concurrency: int, seconds: int) -> Load:
    """Over four connections (one if there is one caller)."""
    connections = min(4, concurrency)
    program = ghz()
    if program is None:
        return _load_grpc_bundled(target, concurrency, connections, seconds)
    with tempfile.TemporaryDirectory() as folder:
        request, protoset = Path(folder) / "request", Path(folder) / "protoset"
        request.write_bytes(target.request)
        protoset.write_bytes(_descriptors())
        arguments = ["--insecure", f"--protoset={protoset}", f"--call={INFER}", f"--binary-file={request}"]
        arguments += [f"--concurrency={concurrency}", f"--connections={connections}", f"--duration={seconds}s"]
        arguments += ["--duration-stop=ignore", f"--metadata={json.dumps(target.metadata)}", "--format=json"]
        printed = subprocess.run(
            [program, *arguments, target.address], capture_output=True, text=True, check=True
        ).stdout
    return _ghz_load(printed, seconds)


class _GhzLatency(msgspec.Struct):
    percentage: int
    latency: int
    """Nanoseconds."""


class _GhzReport(msgspec.Struct):
    """The part of ghz's JSON that is looked at; without an answer it has no latencies."""

    count: int
    statusCodeDistribution: dict[str, int] | None = None  # noqa: N815 -- ghz's name
    latencyDistribution: list[_GhzLatency] | None = None  # noqa: N815 -- ghz's name


def _ghz_load(printed: str, seconds: float) -> Load:
    told = msgspec.json.decode(printed, type=_GhzReport)
    at = {row.percentage: row.latency / 1e6 for row in told.latencyDistribution or ()}
    bad = told.count - (told.statusCodeDistribution or {}).get("OK", 0)
    return Load(told.count, seconds, at.get(50, 0.0), at.get(99, 0.0), bad if told.count else 1)


def _descriptors() -> bytes:
    """The V2 proto with what it imports, as a protoset."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    return files.SerializeToString()


def _load_grpc_bundled(target: GrpcTarget, concurrency: int, connections: int, seconds: float) -> Load:
    """One process for each connection: one alone would be the limit of what is measured."""
    share = max(1, concurrency // connections)
    with multiprocessing.get_context("spawn").Pool(connections) as pool:
        parts = pool.starmap(_call_grpc, [(target, share, seconds)] * connections)
    latencies = [latency for part, _ in parts for latency in part]
    return _load(latencies, seconds, sum(bad for _, bad in parts))


def _call_grpc(target: GrpcTarget, callers: int, seconds: float) -> tuple[list[float], int]:
    return uvloop.run(_call_grpc_loop(target, callers, seconds))


async def _call_grpc_loop(target: GrpcTarget, callers: int, seconds: float) -> tuple[list[float], int]:
    latencies: list[float] = []
    bad = 0
    metadata = tuple(target.metadata.items())

    async with grpc.aio.insecure_channel(target.address) as channel:
        call = channel.unary_unary("/" + INFER.replace("Service.", "Service/"), bytes, bytes)

        async def call_until(end: float) -> None:
            nonlocal bad
            while (start := time.perf_counter()) < end:
                try:
                    await call(target.request, metadata=metadata)
                except grpc.aio.AioRpcError:
                    bad += 1
                latencies.append(time.perf_counter() - start)

        await channel.channel_ready()
        end = time.perf_counter() + seconds
        await asyncio.gather(*(call_until(end) for _ in range(callers)))
    return latencies, bad
