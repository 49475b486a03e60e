"""NVIDIA's own clients, unmodified, are the judges of the protocol: http, http.aio, grpc and grpc.aio in one suite."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from penstock.client import Client
from penstock.errors import BadRequest, InvalidInput
from tritonclient.utils import InferenceServerException

from tests.graphs import ELEMENTS
from tests.running import BOTH_SHAPES, RunningServer

pytestmark = [BOTH_SHAPES, pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")]
"""tritonclient.http.aio never releases an answer of which it wants the status alone."""

MODULES: dict[str, Any] = {
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
}
NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
JSON_TYPES = [datatype for datatype in ELEMENTS if datatype not in ("FP16", "BF16")]


class Judge:
    """One of the four clients behind one way to call it. `http`: whether it speaks REST."""

    def __init__(self, kind: str, server: RunningServer, key: str | None = None) -> None:
        self.http = kind.startswith("http")
        self.module = MODULES[kind]
        self.client = self.module.InferenceServerClient(
            (server.url if self.http else f"http://{server.grpc}").removeprefix("http://")
        )
        self.headers = {"authorization": f"Bearer {server.api_key if key is None else key}"}

    async def ask(self, method: str, *values: Any, **named: Any) -> Any:
        """Call a method with the credential; await it if need be."""
        answer = getattr(self.client, method)(*values, **{"headers": self.headers, **named})
        return await answer if inspect.isawaitable(answer) else answer

    async def told(self, method: str, *values: Any, **named: Any) -> Any:
        """A method's answer as plain data, whichever the protocol."""
        return await self.ask(method, *values, **named, **({} if self.http else {"as_json": True}))

    def input(self, name: str, array: Any, datatype: str, binary: bool = True) -> Any:
        made = self.module.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, binary_data=binary) if self.http else made.set_data_from_numpy(array)
        return made

    def output(self, name: str, **options: Any) -> Any:
        if not self.http:
            options.pop("binary_data", None)
        return self.module.InferRequestedOutput(name, **options)

    async def close(self) -> None:
        closed = self.client.close()
        if inspect.isawaitable(closed):
            await closed
        if self.module is tritonclient.http.aio:
            gc.collect()


@pytest.fixture(scope="module", autouse=True)
def old_objects() -> Iterator[None]:
    """What stands before the tests need not be looked at by each of their collections."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=list(MODULES))
async def judge(request: pytest.FixtureRequest, running_server: RunningServer) -> AsyncIterator[Judge]:
    made = Judge(request.param, running_server)
    yield made
    await made.close()


@pytest.fixture(params=["http", "http.aio"])
async def rest(request: pytest.FixtureRequest, running_server: RunningServer) -> AsyncIterator[Judge]:
    made = Judge(request.param, running_server)
    yield made
    await made.close()


def sample(datatype: str) -> Any:
    """Two rows of three elements, the extremes of the datatype among them."""
    if datatype == "BYTES":
        return np.array([["", "grüße", "a\nb"], ["\u0000", "日本", "x" * 300]], dtype=object)
    if datatype == "BF16":
        return np.array([[0, 1.5, -2], [3.0, 2.0**100, -0.0]], ml_dtypes.bfloat16)
    kind = NUMPY[datatype]
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    info = np.iinfo(kind) if np.issubdtype(kind, np.integer) else np.finfo(kind)
    return np.array([[0, 1, info.max], [info.min, 2, 3]], kind)


def same(datatype: str, found: Any, sent: Any) -> bool:
    if datatype == "BYTES":
        return [bytes(each) for each in found.reshape(-1)] == [each.encode() for each in sent.reshape(-1)]
    return bool(np.array_equal(found, sent)) and found.shape == sent.shape


# --- server and models --------------------------------------------------------------------------------------------


async def test_live_and_ready(judge: Judge) -> None:
    """Live and ready are true, also for a client that shows no credential."""
    for method in ("is_server_live", "is_server_ready"):
        assert await judge.ask(method) is True
        assert await judge.ask(method, headers=None) is True


async def test_model_ready(judge: Judge) -> None:
    """By name, number and alias-less default; an unknown model is not ready (REST) or an error (gRPC)."""
    assert await judge.ask("is_model_ready", "iris") is True
    assert await judge.ask("is_model_ready", "iris", "1") is True
    if judge.http:
        assert await judge.ask("is_model_ready", "nobody") is False
    else:
        with pytest.raises(InferenceServerException, match="unknown model"):
            await judge.ask("is_model_ready", "nobody")


async def test_server_metadata(judge: Judge) -> None:
    """Name, version, and exactly the extensions that work."""
    told = await judge.told("get_server_metadata")
    assert told["name"] == "penstock"
    assert set(told["extensions"]) == {
        "classification",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
    }


async def test_model_metadata(judge: Judge) -> None:
    """Inputs and outputs with the batch dimension as -1, the platform, the versions."""
    told = await judge.told("get_model_metadata", "iris")
    assert told["name"] == "iris"
    assert told["versions"] == ["1"]
    assert told["platform"] == "sklearn_skops"
    (entry,) = told["inputs"]
    assert (entry["datatype"], [int(each) for each in entry["shape"]]) == ("FP64", [-1, 4])
    assert {output["name"] for output in told["outputs"]} == {"predict", "predict_proba"}


async def test_model_configuration(judge: Judge) -> None:
    """perf_analyzer reads max_batch_size and the tensors, whose shapes lack the batch dimension."""
    told = await judge.told("get_model_config", "iris")
    config = told if judge.http else told["config"]
    assert config["max_batch_size"] == 32
    assert [int(each) for each in config["input"][0]["dims"]] == [4]
    assert config["input"][0]["data_type"] == "TYPE_FP64"
    assert "dynamic_batching" in config


async def test_statistics(judge: Judge) -> None:
    """Of one model, one version and all models; a request is counted once, its batch too."""
    rows = np.ones((2, 4))
    before = await _counted(judge)
    await judge.ask("infer", "iris", [judge.input("input", rows, "FP64")])
    after = await _counted(judge)
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["success"] - before["success"] == 1
    everything = await judge.told("get_inference_statistics")
    assert {"digits", "iris"} <= {each["name"] for each in everything["model_stats"]}


async def _counted(judge: Judge) -> dict[str, int]:
    told = await judge.told("get_inference_statistics", "iris", "1")
    (stats,) = told["model_stats"]
    counts = {name: int(stats.get(name, 0)) for name in ("inference_count", "execution_count")}
    return {**counts, "success": int(stats["inference_stats"]["success"].get("count", 0))}


async def test_repository(judge: Judge, ps: Client, files: Path) -> None:
    """Index, unload, load: each answers when it is done."""
    name = f"held-{'rest' if judge.http else 'rpc'}-{'a' if '.aio' in judge.module.__name__ else 's'}"
    await asyncio.to_thread(ps.push, files / "identity-fp32.onnx", name)
    assert await _state(judge, name) == "READY"
    await judge.ask("unload_model", name)
    assert await _state(judge, name) == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match=r"not ready|no version"):
        await judge.ask("infer", name, [judge.input("x", np.ones((1, 1), np.float32), "FP32")])
    await judge.ask("load_model", name)
    assert await _state(judge, name) == "READY"
    answer = await judge.ask("infer", name, [judge.input("x", np.ones((1, 1), np.float32), "FP32")])
    assert answer.as_numpy("y").tolist() == [[1.0]]


async def _state(judge: Judge, name: str) -> str:
    told = await judge.told("get_model_repository_index")
    rows = told if judge.http else told["models"]
    (row,) = [each for each in rows if each["name"] == name]
    return str(row["state"])


async def test_load_with_a_configuration_is_refused(judge: Judge) -> None:
    """Versions are immutable: the error points to push."""
    with pytest.raises(InferenceServerException, match="push"):
        await judge.ask("load_model", "iris", config='{"max_batch_size": 4}')
    with pytest.raises(InferenceServerException, match="push"):
        await judge.ask("load_model", "iris", config="{}", files={"file:1/model.onnx": b"x"})


# --- infer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", list(ELEMENTS))
async def test_every_datatype_in_binary(judge: Judge, identities: dict[str, str], datatype: str) -> None:
    """What goes in comes out, bit for bit, in raw bytes both ways."""
    sent = sample(datatype)
    answer = await judge.ask("infer", identities[datatype], [judge.input("x", sent, datatype)])
    assert same(datatype, answer.as_numpy("y"), sent)


@pytest.mark.parametrize("datatype", JSON_TYPES)
async def test_every_datatype_in_json(rest: Judge, identities: dict[str, str], datatype: str) -> None:
    """JSON in and out; FP32 and FP64 keep every bit."""
    sent = sample(datatype)
    given = rest.input("x", sent, datatype, binary=False)
    answer = await rest.ask("infer", identities[datatype], [given], outputs=[rest.output("y", binary_data=False)])
    found = answer.as_numpy("y")
    assert "data" in answer.get_output("y")
    if datatype == "BYTES":
        assert found.tolist() == sent.tolist()
    else:
        assert same(datatype, found, sent)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_halves_are_never_json(rest: Judge, identities: dict[str, str], datatype: str) -> None:
    """Asked for as JSON, they are refused with the advice to ask for binary."""
    given = rest.input("x", sample(datatype), datatype)
    with pytest.raises(InferenceServerException, match="binary"):
        await rest.ask("infer", identities[datatype], [given], outputs=[rest.output("y", binary_data=False)])


async def test_a_python_class_gets_bytes_and_bfloat16(judge: Judge, classes: dict[str, str]) -> None:
    """BYTES arrive as objects of bytes, also those that are not UTF-8; BF16 as bfloat16."""
    text = np.array([[b"\xff\x00", b""]], dtype=object)
    half = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    given = [judge.input("text", text, "BYTES"), judge.input("half", half, "BF16")]
    answer = await judge.ask("infer", classes["Passthrough"], given)
    assert answer.as_numpy("text").tolist() == text.tolist()
    assert answer.as_numpy("half").tolist() == half.tolist()


async def test_classification(judge: Judge) -> None:
    """The k best of each row with their labels, best first."""
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]])
    wanted = [judge.output("predict_proba", class_count=2)]
    answer = await judge.ask("infer", "iris", [judge.input("input", rows, "FP64")], outputs=wanted)
    found = answer.as_numpy("predict_proba")
    assert found.shape == (2, 2)
    best = [row[0].decode().split(":")[2] for row in found]
    assert best == ["setosa", "virginica"]
    scores = [[float(cell.decode().split(":")[0]) for cell in row] for row in found]
    assert all(first >= second for first, second in scores)


async def test_requested_outputs(judge: Judge) -> None:
    """Only those asked for, in that order; all of them where none is."""
    given = [judge.input("input", np.ones((1, 4)), "FP64")]
    one = await judge.ask("infer", "iris", given, outputs=[judge.output("predict")])
    assert one.as_numpy("predict_proba") is None
    both = await judge.ask("infer", "iris", given)
    assert both.as_numpy("predict") is not None
    assert both.as_numpy("predict_proba") is not None


async def test_ids_and_versions_come_back(judge: Judge) -> None:
    answer = await judge.ask("infer", "iris", [judge.input("input", np.ones((1, 4)), "FP64")], request_id="grüße \n1")
    head = answer.get_response() if judge.http else answer.get_response(as_json=True)
    assert head["id"] == "grüße \n1"
    assert head["model_version"] == "1"
    assert head["model_name"] == "iris"


async def test_priority_and_timeout(judge: Judge) -> None:
    """Both are taken; a timeout of one microsecond is a deadline that has passed, and the error says so."""
    given = [judge.input("input", np.ones((1, 4)), "FP64")]
    answer = await judge.ask("infer", "iris", given, priority=1, timeout=20_000_000)
    assert answer.as_numpy("predict").shape == (1,)
    with pytest.raises(InferenceServerException, match="deadline") as refused:
        await judge.ask("infer", "iris", given, timeout=1)
    assert refused.value.status() == ("504" if judge.http else "StatusCode.DEADLINE_EXCEEDED")


async def test_parameters_reach_the_model(judge: Judge, classes: dict[str, str]) -> None:
    """The caller's own do, reserved ones do not."""
    own = {"word": "grüße", "count": 7, "on": True}
    given = [judge.input("x", np.ones((1, 1), np.float32), "FP32")]
    answer = await judge.ask("infer", classes["Parameters"], given, parameters=own, priority=2)
    assert json.loads(answer.as_numpy("told")[0, 0]) == own


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compression(rest: Judge, identities: dict[str, str], encoding: str) -> None:
    """Bodies compressed in both directions."""
    sent = np.tile(np.arange(100, dtype=np.float32), (8, 10))
    answer = await rest.ask(
        "infer",
        identities["FP32"],
        [rest.input("x", sent, "FP32")],
        request_compression_algorithm=encoding,
        response_compression_algorithm=encoding,
    )
    assert same("FP32", answer.as_numpy("y"), sent)


@pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])
async def test_compressed_messages(running_server: RunningServer, identities: dict[str, str], kind: str) -> None:
    judge = Judge(kind, running_server)
    sent = np.zeros((8, 1000), np.float32)
    given = [judge.input("x", sent, "FP32")]
    answer = await judge.ask("infer", identities["FP32"], given, compression_algorithm="gzip")
    assert same("FP32", answer.as_numpy("y"), sent)
    await judge.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_is_compressed_for_who_accepts_it(running_server: RunningServer, encoding: str) -> None:
    """The answer says so in its header, and is smaller."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [8, 100], "data": [0.0] * 800}]}
    headers = {"Authorization": f"Bearer {running_server.api_key}", "Accept-Encoding": encoding}
    answer = httpx.post(f"{running_server.url}/v2/models/identity-fp32/infer", json=body, headers=headers)
    assert answer.headers["content-encoding"] == encoding
    assert int(answer.headers["content-length"]) < 500
    assert answer.json()["outputs"][0]["data"] == [0.0] * 800


def test_a_raw_binary_request(running_server: RunningServer, identities: dict[str, str]) -> None:
    """A header length of 0: the whole body is the one input, a batch of one; all outputs come in binary."""
    data = np.arange(6, dtype=np.float32)
    headers = {"Authorization": f"Bearer {running_server.api_key}", "Inference-Header-Content-Length": "0"}
    url = f"{running_server.url}/v2/models/{identities['FP32']}/infer"
    answer = httpx.post(url, content=data.tobytes(), headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:length])
    assert head["outputs"][0]["shape"] == [1, 6]
    assert answer.content[length:] == data.tobytes()


@pytest.mark.parametrize(
    ("model", "name", "array", "datatype", "message", "status", "code"),
    [
        ("nobody", "x", np.ones((1, 4)), "FP64", "unknown model 'nobody'", "404", "NOT_FOUND"),
        ("iris", "wrong", np.ones((1, 4)), "FP64", "'input'", "400", "INVALID_ARGUMENT"),
        ("iris", "input", np.ones((1, 5)), "FP64", "'input': shape", "400", "INVALID_ARGUMENT"),
        ("iris", "input", np.ones((1, 4), np.float32), "FP32", "'input': FP32", "400", "INVALID_ARGUMENT"),
        ("iris", "input", np.ones((33, 4)), "FP64", "33 rows", "400", "INVALID_ARGUMENT"),
    ],
)
async def test_errors_say_what_is_wrong(
    judge: Judge, model: str, name: str, array: Any, datatype: str, message: str, status: str, code: str
) -> None:
    """The client's own exception, with our sentence and the right status."""
    with pytest.raises(InferenceServerException, match=message) as refused:
        await judge.ask("infer", model, [judge.input(name, array, datatype)])
    assert refused.value.status() == (status if judge.http else f"StatusCode.{code}")


@pytest.mark.parametrize("kind", list(MODULES))
async def test_a_bad_key(running_server: RunningServer, kind: str) -> None:
    judge = Judge(kind, running_server, key="psk_0123456789ab_wrong")
    with pytest.raises(InferenceServerException, match="unknown or revoked") as refused:
        await judge.ask("get_server_metadata")
    assert refused.value.status() == ("401" if judge.http else "StatusCode.UNAUTHENTICATED")
    await judge.close()


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_async_infer_of_the_blocking_clients(running_server: RunningServer, kind: str) -> None:
    """Eight in flight at once, each with an answer of its own."""
    judge = Judge(kind, running_server)
    rows = [np.full((1, 4), float(number)) for number in range(8)]
    given = [[judge.input("input", row, "FP64")] for row in rows]
    if judge.http:
        asked = [judge.client.async_infer("iris", each, headers=judge.headers) for each in given]
        answers = [each.get_result() for each in asked]
    else:
        done: queue.Queue[Any] = queue.Queue()
        for each in given:
            judge.client.async_infer(
                "iris", each, lambda result, error: done.put(error or result), headers=judge.headers
            )
        answers = [done.get(timeout=30) for _ in given]
    assert all(answer.as_numpy("predict_proba").shape == (1, 3) for answer in answers)
    await judge.close()


# --- the traps of protocol.md, by name ----------------------------------------------------------------------------


async def test_trap_1_only_200_is_success(running_server: RunningServer, ps: Client, files: Path) -> None:
    """Load and unload answer 200, not 201, 202 or 204."""
    await asyncio.to_thread(ps.push, files / "identity-fp32.onnx", "trap-one")
    headers = {"Authorization": f"Bearer {running_server.api_key}"}
    for verb in ("unload", "load"):
        answer = httpx.post(f"{running_server.url}/v2/repository/models/trap-one/{verb}", headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text


def test_trap_2_readiness_is_the_status_alone(running_server: RunningServer) -> None:
    for path in ("live", "ready"):
        assert httpx.get(f"{running_server.url}/v2/health/{path}").status_code == 200


async def test_trap_3_binary_output_by_default(rest: Judge) -> None:
    """With outputs=None the client asks for binary even where its inputs are JSON, and gets it."""
    answer = await rest.ask("infer", "iris", [rest.input("input", np.ones((1, 4)), "FP64", binary=False)])
    assert "data" not in answer.get_output("predict_proba")
    assert answer.as_numpy("predict_proba").shape == (1, 3)


async def test_trap_4_stats_is_no_model_name(judge: Judge, ps: Client, files: Path) -> None:
    """`v2/models/stats` is the statistics of all models, so a model cannot be called that."""
    with pytest.raises((BadRequest, InvalidInput), match="stats"):
        ps.push(files / "identity-fp32.onnx", "stats")
    assert "model_stats" in await judge.told("get_inference_statistics")


async def test_trap_5_unload_posts_a_body(rest: Judge, ps: Client, files: Path) -> None:
    """The index is a POST, and unload sends `unload_dependents` each time."""
    name = f"trap-five-{rest.module.__name__[-3:]}"
    await asyncio.to_thread(ps.push, files / "identity-fp32.onnx", name)
    await rest.ask("unload_model", name, unload_dependents=True)
    assert await _state(rest, name) == "UNAVAILABLE"


def test_trap_6_every_error_has_the_one_form(running_server: RunningServer) -> None:
    """FastAPI's own 404, 405 and 422 are `{"error": …}` too, and the 422 is a 400."""
    headers = {"Authorization": f"Bearer {running_server.api_key}"}
    with httpx.Client(base_url=running_server.url, headers=headers) as http:
        answers = {
            404: http.get("/no/such/path"),
            405: http.delete("/v2/models/iris"),
            400: http.post(f"{running_server.control}/api/v1/keys", json={"name": 7}),
        }
    for status, answer in answers.items():
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"error"}


async def test_trap_7_names_are_url_quoted(rest: Judge, ps: Client, files: Path) -> None:
    """A name that needs no quoting works as it is; one that comes quoted is unquoted once, and refused politely."""
    with pytest.raises(InferenceServerException, match=r"no model name|unknown model"):
        await rest.ask("infer", "a b", [rest.input("x", np.ones((1, 1), np.float32), "FP32")])
    await asyncio.to_thread(ps.push, files / "identity-fp32.onnx", "a.b_c-d")
    answer = await rest.ask("infer", "a.b_c-d", [rest.input("x", np.ones((1, 1), np.float32), "FP32")])
    assert answer.as_numpy("y").tolist() == [[1.0]]


async def test_trap_8_what_perf_analyzer_reads(judge: Judge) -> None:
    """Server metadata, model metadata, configuration and statistics, of one model by number."""
    assert (await judge.told("get_server_metadata"))["extensions"]
    assert (await judge.told("get_model_metadata", "digits", "1"))["inputs"]
    assert await judge.told("get_model_config", "digits", "1")
    assert (await judge.told("get_inference_statistics", "digits", "1"))["model_stats"]
