"""A model's life as a data scientist lives it, through SDK and command: pushed, aliased, reloaded, broken, deleted.

In the production shape each push starts a replica, for seconds: what is about many of them takes fewer there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import penstock
import psutil
import pytest
import tritonclient.grpc.aio
from penstock.client import Client
from penstock.errors import BadRequest, NotFound, PermissionDenied, ServerFailed, Unauthenticated, Unavailable
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tritonclient.grpc import service_pb2

from tests.e2e.artifacts import SIGNATURES
from tests.e2e.conftest import push_class
from tests.e2e.test_up import until
from tests.graphs import numbered
from tests.production import fronts, informed, left_as_it_was, logged, ready, waited
from tests.running import BOTH_SHAPES, COMMAND, RunningServer, alive

pytestmark = BOTH_SHAPES

ONE = np.ones((1, 1), np.float32)


@pytest.fixture(scope="module", autouse=True)
def room(ps: Client) -> Iterator[None]:
    """What stands here after a test would take the place of others'."""
    with left_as_it_was(ps):
        yield


@pytest.fixture(scope="module")
def http(running_server: RunningServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {running_server.api_key}"}
    with httpx.Client(base_url=running_server.url, headers=headers, timeout=60) as client:
        yield client


Raw = Callable[[str, dict[str, Any], bytes], httpx.Response]


@pytest.fixture
def raw(http: httpx.Client, running_server: RunningServer) -> Raw:
    """A push without the SDK, which would look into the artifact first."""

    def push(model: str, manifest: dict[str, Any], artifact: bytes) -> httpx.Response:
        parts: dict[str, Any] = {"manifest": (None, json.dumps(manifest)), "artifact": ("a", artifact)}
        return http.post(f"{running_server.control}/api/v1/models/{model}/versions", files=parts)

    return push


def command(server: RunningServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(line, env=server.environment, capture_output=True, text=True, timeout=120)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that must succeed printed."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def body(value: float = 1.0) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [value]}]}


# --- pushing ------------------------------------------------------------------------------------------------------


def test_an_estimator_and_an_example(ps: Client) -> None:
    """The signature is read off the example and stored; the answers are the estimator's own."""
    data = load_wine()
    estimator = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(data.data, data.target)
    record = ps.push(estimator, "cellar", example=data.data[:3], tags={"stage": "test"})
    assert (record["state"], record["version"], record["max_batch"]) == ("READY", 1, 32)
    assert record["signature"]["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 13], "labels": []}]
    found = ps.predict("cellar", data.data)
    assert found.tolist() == estimator.predict(data.data).tolist()


async def test_the_asynchronous_twin(running_server: RunningServer) -> None:
    async with penstock.connect_async(running_server.url, api_key=running_server.api_key) as ps:
        rows = np.random.default_rng(0).normal(size=(10, 4))
        found = await asyncio.gather(*(ps.predict("iris", rows[at : at + 1]) for at in range(10)))
        assert np.concatenate(found).tolist() == (await ps.predict("iris", rows)).tolist()


def test_the_commands(running_server: RunningServer, ps: Client, files: Path, tmp_path: Path) -> None:
    """push, alias, show, unload, load, predict, delete: each does it, prints it, and exits with 0."""
    example = tmp_path / "sample.json"
    example.write_text(json.dumps(body(3.0)))
    artifact = files / "identity-fp32.onnx"
    assert told(command(running_server, "push", artifact, "--name", "told", "--example", example)) == "1"
    told(command(running_server, "models", "alias", "told", "champion", "1"))
    shown = json.loads(told(command(running_server, "models", "show", "told", "--json")))
    assert shown["aliases"] == {"champion": 1}
    refused = command(running_server, "models", "delete", "told", "--version", "1")
    assert refused.returncode == 1
    assert "alias" in refused.stderr
    told(command(running_server, "models", "unload", "told"))
    with pytest.raises(Unavailable):
        ps.predict("told", ONE)
    told(command(running_server, "models", "load", "told"))
    asked: list[str | Path] = ["--input", example, "--version", "champion", "--json"]
    found = json.loads(told(command(running_server, "predict", "told", *asked)))
    assert found["outputs"][0]["data"] == [3.0]
    ps.unalias("told", "champion")
    told(command(running_server, "models", "delete", "told", "--yes"))
    with pytest.raises(NotFound):
        ps.model("told")


def test_a_class_by_command(running_server: RunningServer, ps: Client, files: Path, tmp_path: Path) -> None:
    """With --allow-code; without it the command says what is missing, before anything is sent."""
    signature = tmp_path / "sig.json"
    signature.write_text(json.dumps(SIGNATURES["Parameters"]))
    source = f"{files / 'models.py'}:Parameters"
    refused = command(running_server, "push", source, "--name", "by-command", "--signature", signature)
    assert refused.returncode == 1
    assert "--allow-code" in refused.stderr
    line: list[str | Path] = [
        "push",
        source,
        "--name",
        "by-command",
        "--signature",
        signature,
        "--max-batch",
        "64",
        "--allow-code",
    ]
    assert told(command(running_server, *line)) == "1"
    shown = ps.version("by-command", 1)
    assert (shown["max_batch"], shown["format"], shown["entry"]) == (64, "python", "Parameters")


def test_code_needs_the_grant(ps: Client, running_server: RunningServer, files: Path) -> None:
    """A deploy key without it: 403."""
    key = ps.keys.create("no-code", role="deploy")["key"]
    with (
        penstock.connect(running_server.url, control=running_server.control, api_key=key) as other,
        pytest.raises(PermissionDenied, match="grant 'code'"),
    ):
        push_class(other, files, "Parameters", "granted")


def test_a_wrong_signature_leaves_the_old_version_serving(ps: Client, files: Path, raw: Raw) -> None:
    """The push is refused with the reason; requests go on being answered by the version before."""
    ps.push(files / "identity-fp32.onnx", "steady")
    wrong = {"inputs": [{"name": "x", "datatype": "INT8", "shape": [-1, 7]}], "outputs": []}
    with pytest.raises(BadRequest, match=r"input 'x'.*INT8"):
        ps.push(files / "identity-fp32.onnx", "steady", signature=wrong)
    refused = raw("steady", {"format": "onnx"}, b"this is no graph")
    assert refused.status_code == 400
    assert "no ONNX model" in refused.json()["error"]
    with pytest.raises(BadRequest, match="no weights here"):
        push_class(ps, files, "Unloadable", "steady")
    assert ps.infer("steady", ONE).version == "1"
    states = [version["state"] for version in ps.model("steady")["versions"]]
    assert states == ["UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE", "READY"]


def test_max_batch(ps: Client, files: Path, http: httpx.Client) -> None:
    """32 where every first dimension varies; as asked; 0 = one by one, and then the first dimension is no batch."""
    assert ps.push(files / "identity-fp32.onnx", "batched")["max_batch"] == 32
    assert ps.push(files / "identity-fp32.onnx", "batched", max_batch=4)["max_batch"] == 4
    assert http.get("/v2/models/batched/config").json()["max_batch_size"] == 4
    many = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [5, 1], "data": [1, 2, 3, 4, 5]}]}
    assert http.post("/v2/models/batched/infer", json=many).status_code == 400
    assert ps.push(files / "identity-fp32.onnx", "batched", max_batch=0)["max_batch"] == 0
    assert http.post("/v2/models/batched/infer", json=many).json()["outputs"][0]["data"] == [1, 2, 3, 4, 5]


def test_two_dozen_models(running_server: RunningServer, ps: Client, tmp_path: Path) -> None:
    """Loaded at once, each answers with its own number; four in the production shape."""
    numbers = range(4 if running_server.distributed else 24)

    def push(number: int) -> None:
        (tmp_path / f"{number}.onnx").write_bytes(numbered(number))
        ps.push(tmp_path / f"{number}.onnx", f"dozen-{number}")

    with ThreadPoolExecutor(2) as pushing:
        list(pushing.map(push, numbers))
    found = [ps.infer(f"dozen-{number}", ONE).outputs["version"][0, 0] for number in numbers]
    assert found == list(numbers)
    for number in numbers:
        ps.delete(f"dozen-{number}")


# --- versions -----------------------------------------------------------------------------------------------------


def test_which_version_answers(ps: Client, http: httpx.Client, tmp_path: Path) -> None:
    """Champion where it is set, else the highest; by number or alias; an unknown one is 404, one not loaded 503."""
    for number in (1, 2, 3):
        (tmp_path / f"{number}.onnx").write_bytes(numbered(number))
        ps.push(tmp_path / f"{number}.onnx", "aliased", alias="candidate" if number == 2 else None)

    def answered(path: str = "") -> tuple[int, str | None]:
        answer = http.post(f"/v2/models/aliased{path}/infer", json=body())
        return answer.status_code, answer.json().get("model_version", answer.headers.get("retry-after"))

    assert answered() == (200, "3")
    assert answered("/versions/candidate") == (200, "2")
    assert answered("/versions/2") == (200, "2")
    assert answered("/versions/3") == (200, "3")
    assert answered("/versions/1")[0] == 503
    assert answered("/versions/1")[1] is not None
    assert answered("/versions/9") == (404, None)
    assert answered("/versions/nobody") == (404, None)
    ps.alias("aliased", "champion", 2)
    assert answered() == (200, "2")
    ps.load("aliased", 1)
    assert answered("/versions/1") == (200, "1")
    ps.unalias("aliased", "champion")
    assert answered() == (200, "3")
    with pytest.raises(NotFound):
        ps.alias("aliased", "champion", 9)


def test_unload_load_delete(ps: Client, http: httpx.Client, files: Path) -> None:
    """Unloaded: 503 with Retry-After; loaded by name: 200 at once; deleted: 404, and the numbers go on."""
    ps.push(files / "identity-fp32.onnx", "gone")
    ps.unload("gone")
    answer = http.post("/v2/models/gone/infer", json=body())
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert http.get("/v2/models/gone/ready").status_code == 503
    ps.load("gone")
    assert http.post("/v2/models/gone/infer", json=body()).status_code == 200
    ps.delete("gone")
    assert http.post("/v2/models/gone/infer", json=body()).status_code == 404
    assert ps.push(files / "identity-fp32.onnx", "gone")["version"] == 2


# --- reloading ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def load_on(server: RunningServer, model: str) -> Any:
    """Eight clients that ask one after the other, half of them by gRPC; yields the list of their answers.

    Where everything that serves them is on this machine, and a new replica starts beside it, they leave it room.
    """
    answers: list[tuple[float, float, str]] = []
    pause = 0.1 if server.distributed else 0.0
    over = asyncio.Event()
    headers = {"Authorization": f"Bearer {server.api_key}"}

    async def rest(number: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
            while not over.is_set():
                answer = await client.post(f"/v2/models/{model}/infer", json=body(float(number)))
                assert answer.status_code == 200, answer.text
                content = answer.json()
                values = {output["name"]: output["data"][0] for output in content["outputs"]}
                answers.append((values["y"] - number, values["version"], content["model_version"]))
                await asyncio.sleep(pause)

    async def rpc(number: int) -> None:
        given = tritonclient.grpc.aio.InferInput("x", [1, 1], "FP32")
        given.set_data_from_numpy(np.full((1, 1), number, np.float32))
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc) as client:
            while not over.is_set():
                answer = await client.infer(model, [given], headers={"authorization": f"Bearer {server.api_key}"})
                values = {name: float(answer.as_numpy(name)[0, 0]) for name in ("y", "version")}
                answers.append((values["y"] - number, values["version"], answer.get_response().model_version))
                await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(rest(number))
            group.create_task(rpc(number))
        yield answers
        over.set()


HOT_WITHIN_S = 180


async def test_hot_reload_under_load(running_server: RunningServer, ps: Client, tmp_path: Path) -> None:
    """While versions are pushed and an alias flips: no request fails, and each is answered by one whole version."""
    for number in range(1, 5):
        (tmp_path / f"{number}.onnx").write_bytes(numbered(number))
    ps.push(tmp_path / "1.onnx", "hot")
    async with load_on(running_server, "hot") as answers, asyncio.timeout(HOT_WITHIN_S):
        await _more(answers, 20)
        for number in (2, 3, 4):
            await asyncio.to_thread(ps.push, tmp_path / f"{number}.onnx", "hot")
            await _more(answers, len(answers) + 30)
            assert answers[-1][1] == number
        for champion in (3, 4, 3):
            await asyncio.to_thread(ps.alias, "hot", "champion", champion)
            await _more(answers, len(answers) + 20)
        await asyncio.to_thread(ps.unalias, "hot", "champion")
        await _more(answers, len(answers) + 20)
    assert all(added == said == float(version) for added, said, version in answers)
    assert {version for *_, version in answers} == {"1", "2", "3", "4"}


async def _more(answers: list[Any], count: int) -> None:
    while len(answers) < count:
        await asyncio.sleep(0.005)


def test_memory_comes_back(running_server: RunningServer, ps: Client, tmp_path: Path) -> None:
    """Reloads of a large model: no process holds more than one or two of them in the end, and those that held a version
    that went are gone."""
    megabytes, reloads = (20, 2) if running_server.distributed else (40, 8)
    here = fronts(running_server)
    hosts: list[psutil.Process] = []

    def reload(number: int) -> None:
        (tmp_path / "big.onnx").write_bytes(numbered(number, megabytes=megabytes))
        ps.push(tmp_path / "big.onnx", "big")
        hosts.extend(_hosts(ps, "big"))

    def grown() -> int:
        return max(after - size for after, size in zip(_memory(here), before, strict=True))

    reload(0)
    before = _memory(here)
    for number in range(1, reloads + 1):
        reload(number)
        assert ps.infer("big", ONE).outputs["version"][0, 0] == number
    until(lambda: grown() < 3 * megabytes << 19, 10)
    ps.delete("big")
    until(lambda: grown() < (megabytes << 20 if running_server.distributed else 0), 10)
    until(lambda: not any(alive(host) for host in hosts if host not in here), 20)


def _memory(processes: list[psutil.Process]) -> list[int]:
    return [process.memory_info().rss for process in processes]


def _hosts(ps: Client, model: str) -> set[psutil.Process]:
    """The processes in which it runs."""
    found = set()
    for replica in ready(ps, model):
        with suppress(psutil.NoSuchProcess):  # it may go meanwhile
            found.add(psutil.Process(replica["pid"]))
    return found


# --- keys and children --------------------------------------------------------------------------------------------


async def test_a_revoked_key_ends_within_five_seconds(running_server: RunningServer, ps: Client) -> None:
    """On REST, gRPC and the control API, on connections that are open already."""
    made = ps.keys.create("short-lived")
    waited(lambda: informed(ps))
    metadata = [("x-api-key", made["key"])]
    flower = b'{"inputs":[{"name":"input","datatype":"FP64","shape":[1,4],"data":[5.1,3.5,1.4,0.2]}]}'
    async with (
        httpx.AsyncClient(base_url=running_server.url, headers={"X-API-Key": made["key"]}) as client,
        grpc.aio.insecure_channel(running_server.grpc) as channel,
    ):
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerMetadata",
            request_serializer=service_pb2.ServerMetadataRequest.SerializeToString,
            response_deserializer=service_pb2.ServerMetadataResponse.FromString,
        )
        assert (await client.get("/v2")).status_code == 200
        for _ in range(3):
            assert (await client.post("/v2/models/iris/infer", content=flower)).status_code == 200
        await call(service_pb2.ServerMetadataRequest(), metadata=metadata)
        ps.keys.revoke(made["id"])
        async with asyncio.timeout(5):
            for path in ("/v2", f"{running_server.control}/api/v1/whoami"):
                while (await client.get(path)).status_code != 401:
                    pass
            while (await client.post("/v2/models/iris/infer", content=flower)).status_code != 401:
                pass
            while (code := await _code(call(service_pb2.ServerMetadataRequest(), metadata=metadata))) == "OK":
                pass
    assert code == "UNAUTHENTICATED"
    with (
        penstock.connect(running_server.url, control=running_server.control, api_key=made["key"]) as other,
        pytest.raises(Unauthenticated),
    ):
        other.whoami()


async def _code(call: Any) -> str:
    with suppress(grpc.aio.AioRpcError):
        await call
    return str((await call.code()).name)


async def test_a_child_is_killed_mid_batch(running_server: RunningServer, ps: Client, files: Path) -> None:
    """Its callers get a typed error or an answer, the other models notice nothing, and it comes back."""
    push_class(ps, files, "Fragile", "fragile", max_batch=8)
    pid = int(ps.predict("fragile", [[0]])[0, 0])
    headers = {"Authorization": f"Bearer {running_server.api_key}"}
    stuck: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [2]}]}
    stuck["parameters"] = {"timeout": 2_000_000}
    (files / "calm.onnx").write_bytes(numbered(1))
    ps.push(files / "calm.onnx", "calm")
    async with httpx.AsyncClient(base_url=running_server.url, headers=headers, timeout=40) as client:
        asked = [asyncio.create_task(client.post("/v2/models/fragile/infer", json=stuck)) for _ in range(4)]
        async with load_on(running_server, "calm") as answers:
            await _more(answers, 20)
            os.kill(pid, signal.SIGKILL)
            ended = await asyncio.wait_for(asyncio.gather(*asked), 40)
            await _more(answers, len(answers) + 50)
    assert {answer.status_code for answer in ended} <= {500, 503, 504}
    assert all(set(answer.json()) <= {"error", "error_id"} for answer in ended)
    assert all("retry-after" in answer.headers for answer in ended if answer.status_code == 503)

    def back() -> int | None:
        with suppress(Unavailable):
            return int(ps.predict("fragile", [[0]])[0, 0])
        return None

    begun = time.monotonic()
    assert until(back, 60) != pid
    assert time.monotonic() - begun < 45


def test_a_models_own_error(ps: Client, files: Path, running_server: RunningServer) -> None:
    """500 with an error id; its text stands in the log only."""
    push_class(ps, files, "Fragile", "raising")
    with pytest.raises(ServerFailed) as failed:
        ps.predict("raising", [[1]])
    assert failed.value.error_id
    assert "passwd" not in str(failed.value)
    line = until(lambda: [one for one in logged(running_server).splitlines() if "passwd" in one], 10)
    assert any(failed.value.error_id in one for one in line), line
