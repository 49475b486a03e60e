"""The gRPC edge, judged by unmodified tritonclient: every method, every datatype, every error."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_sync
import tritonclient.grpc.aio as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from core import errors
from core.datatypes import DATATYPES
from core.errors import ModelFailed, NotFound, PenstockError, PermissionDenied, leaves
from core.identity import OBSERVE, Credential, Principal, Verifier, new_key
from core.status import status_of
from gateway.codec import protobuf
from gateway.exchange import InferRequest, InferResponse
from gateway.metadata import EXTENSIONS
from gateway.rpc import MAX_DETAILS, NOBODY, Caller, GrpcExchange, Method, Methods, status
from gateway.transports.fake import Fake
from repository.records import Signature, TensorSpec
from tests.gateway.grpc_running import Running, running, single, version
from workers.messages import Batch, Output

INFER = "/inference.GRPCInferenceService/ModelInfer"
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def tensor(array: np.ndarray[Any, Any], datatype: str = "FP32", name: str = "x") -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def raw_request(model: str = "echo", array: np.ndarray[Any, Any] = ROWS, **fields: Any) -> bytes:
    sent = service_pb2.ModelInferRequest(model_name=model, **fields)
    sent.inputs.add(name="x", datatype="FP32", shape=array.shape)
    sent.raw_input_contents.append(array.tobytes())
    body: bytes = sent.SerializeToString()
    return body


async def eventually(condition: Callable[[], bool], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    found: Any = error.trailing_metadata()
    return dict(found)


# --- what works ---------------------------------------------------------------------------------------------------


async def test_the_async_client_gets_its_rows_back() -> None:
    async with running() as here, here.client() as client:
        answer = await client.infer("echo", [tensor(ROWS)], headers=here.bearer(), request_id="77")
        np.testing.assert_array_equal(answer.as_numpy("x"), ROWS)
        told = answer.get_response()
        assert (told.model_name, told.model_version, told.id) == ("echo", "2", "77")


async def test_the_sync_client_gets_its_rows_back() -> None:
    async with running() as here:

        def infer() -> Any:
            with triton_sync.InferenceServerClient(here.address) as client:
                assert client.is_server_live()
                answer = client.infer("echo", [tensor(ROWS)], headers={"x-api-key": here.keys.predict})
                return answer.as_numpy("x")

        np.testing.assert_array_equal(await asyncio.to_thread(infer), ROWS)


async def test_a_version_or_alias_may_be_named() -> None:
    async with running() as here, here.client() as client:
        answer = await client.infer("echo", [tensor(ROWS)], "1", headers=here.bearer())
        assert answer.get_response().model_version == "1"


async def test_every_method_of_the_server_and_its_models() -> None:
    async with running(failed=version("broken")) as here, here.client() as client:
        bearer = here.bearer()
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert list((await client.get_server_metadata(headers=bearer)).extensions) == list(EXTENSIONS)
        assert await client.is_model_ready("echo", "1", headers=bearer)
        assert not await client.is_model_ready("broken", headers=bearer)
        told = await client.get_model_metadata("echo", headers=bearer)
        assert (list(told.versions), list(told.inputs[0].shape)) == (["1", "2"], [-1, 4])
        config = (await client.get_model_config("echo", headers=bearer)).config
        assert (config.max_batch_size, list(config.input[0].dims)) == (8, [4])
        index = await client.get_model_repository_index(headers=bearer)
        assert [(row.name, row.version, row.state, row.reason) for row in index.models] == [
            ("broken", "1", "UNAVAILABLE", "not loaded"),
            ("echo", "1", "READY", ""),
            ("echo", "2", "READY", ""),
            ("other", "1", "READY", ""),
        ]


async def test_the_index_can_be_of_ready_models_only() -> None:
    async with running(failed=version("broken")) as here:
        request = service_pb2.RepositoryIndexRequest(ready=True).SerializeToString()
        body = await here.call("/inference.GRPCInferenceService/RepositoryIndex", request)
        names = {row.name for row in service_pb2.RepositoryIndexResponse.FromString(body).models}
        assert names == {"echo", "other"}


async def test_statistics_count_what_was_inferred() -> None:
    async with running() as here, here.client() as client:
        await client.infer("echo", [tensor(ROWS)], headers=here.bearer())
        (told,) = (await client.get_inference_statistics("echo", "2", headers=here.bearer())).model_stats
        assert (told.inference_count, told.execution_count, told.inference_stats.success.count) == (2, 1, 1)
        assert told.batch_stats[0].batch_size == 2
        everything = await client.get_inference_statistics(headers=here.bearer())
        assert len(everything.model_stats) == 3


async def test_lists_show_only_what_the_key_may_see() -> None:
    async with running() as here, here.client() as client:
        narrow = here.bearer(here.keys.narrow)
        index = await client.get_model_repository_index(headers=narrow)
        assert [row.name for row in index.models] == ["other"]
        counted = await client.get_inference_statistics(headers=narrow)
        assert [row.name for row in counted.model_stats] == ["other"]
        for asked in (client.get_model_metadata, client.get_model_config, client.is_model_ready):
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                await asked("echo", headers=narrow)
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            await client.infer("echo", [tensor(ROWS)], headers=narrow)


async def test_load_and_unload_need_the_role_and_answer_when_done() -> None:
    async with running() as here, here.client() as client:
        deploy = here.bearer(here.keys.deploy)
        await client.load_model("echo", headers=deploy)
        await client.unload_model("echo", headers=deploy)
        assert here.commands.asked == [("load", "echo"), ("unload", "echo")]
        for verb in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
                await verb("echo", headers=here.bearer())
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                await verb("echo", headers=here.bearer(here.keys.narrow))
        here.commands.error = errors.InvalidRequest("it does not load: damaged")
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*damaged"):
            await client.load_model("echo", headers=deploy)
        assert len(here.commands.asked) == 3


@pytest.mark.parametrize("extra", [{"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"x"}}])
async def test_a_load_that_brings_files_or_a_configuration_is_told_to_push(extra: dict[str, Any]) -> None:
    async with running() as here, here.client() as client:
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*penstock push"):
            await client.load_model("echo", headers=here.bearer(here.keys.deploy), **extra)
        assert here.commands.asked == []


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_there_and_back_raw(datatype: str) -> None:
    sample: dict[str, Any] = {
        "BOOL": np.array([True, False]),
        "FP16": np.array([1.5, np.nan], np.float16),
        "BYTES": np.array([b"", b"\x00\xff"], object),
    }
    values = sample.get(datatype)
    if values is None:
        values = np.array([1, 2], DATATYPES[datatype].numpy)
    async with running(single(datatype)) as here, here.client() as client:
        answer = await client.infer(f"echo-{datatype}", [tensor(values, datatype)], headers=here.bearer())
        found = answer.as_numpy("x")
        np.testing.assert_array_equal(found.astype(values.dtype), values)


async def test_typed_contents_are_answered_raw() -> None:
    async with running() as here:
        sent = service_pb2.ModelInferRequest(model_name="echo")
        contents = service_pb2.InferTensorContents(fp32_contents=[1, 2, 3, 4])
        sent.inputs.add(name="x", datatype="FP32", shape=[1, 4], contents=contents)
        told = service_pb2.ModelInferResponse.FromString(await here.call(INFER, sent.SerializeToString()))
        assert np.frombuffer(told.raw_output_contents[0], np.float32).tolist() == [1, 2, 3, 4]


async def test_classification_names_the_best_classes() -> None:
    spec = TensorSpec("x", "FP32", (-1, 4))
    labelled = Signature((spec,), (TensorSpec("x", "FP32", (-1, 4), labels=("a", "b", "c", "d")),))
    async with running(version(signature=labelled)) as here, here.client() as client:
        wanted = [triton.InferRequestedOutput("x", class_count=2)]
        answer = await client.infer("echo", [tensor(ROWS)], outputs=wanted, headers=here.bearer())
        assert answer.as_numpy("x").tolist() == [[b"3.000000:3:d", b"2.000000:2:c"], [b"7.000000:3:d", b"6.000000:2:c"]]


async def test_priority_timeout_and_own_parameters_reach_their_places() -> None:
    async with running() as here, here.client() as client:
        await client.infer(
            "echo", [tensor(ROWS)], priority=1, timeout=2_000_000, parameters={"top": 3}, headers=here.bearer()
        )
        (batch,) = here.transports["echo/2"].sent
        assert batch.parameters == {"top": 3}


async def test_many_callers_share_batches_and_get_their_own_rows() -> None:
    async with running(version()) as here, here.client() as client:
        fake, batcher = here.transports["echo/1"], here.routes.table.open(_anyone(here))[0].batcher
        fake.window = 0

        async def ask(number: int) -> None:
            rows = np.full((1 + number % 3, 4), number, np.float32)
            answer = await client.infer("echo", [tensor(rows)], headers=here.bearer(), request_id=str(number))
            np.testing.assert_array_equal(answer.as_numpy("x"), rows)
            assert answer.get_response().id == str(number)

        asking = asyncio.gather(*(ask(number) for number in range(60)))
        await eventually(lambda: batcher.pending == 60)
        fake.window = 2
        await asking
        assert len(fake.sent) < 60


# --- leaving, and being late --------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_a_caller_that_leaves_takes_no_neighbour_along(leaver: int) -> None:
    async with running(version()) as here:
        fake, batcher = here.transports["echo/1"], here.routes.table.open(_anyone(here))[0].batcher
        fake.window = 0
        infer = here.unary(INFER)
        calls = []
        for number in range(3):
            body = raw_request(array=np.full((1, 4), number, np.float32))
            calls.append(infer(body, metadata=[("x-api-key", here.keys.predict)], timeout=10))
            await eventually(lambda number=number: batcher.pending == number + 1)  # type: ignore[misc]
        calls[leaver].cancel()
        await eventually(lambda: batcher.pending == 2)
        fake.window = 2
        for number, call in enumerate(calls):
            if number != leaver:
                told = service_pb2.ModelInferResponse.FromString(await call)
                assert np.frombuffer(told.raw_output_contents[0], np.float32)[0] == number
        assert sum(batch.rows for batch in fake.sent) == 2


async def test_a_caller_that_leaves_while_its_batch_runs_is_reported_to_the_worker() -> None:
    async with running(version(), transport=lambda: Fake(automatic=False)) as here:
        fake = here.transports["echo/1"]
        call = here.unary(INFER)(raw_request(), metadata=[("x-api-key", here.keys.predict)], timeout=10)
        await eventually(lambda: bool(fake.sent))
        call.cancel()
        await eventually(lambda: bool(fake.cancelled))
        assert fake.cancelled[0].members == [0]


async def test_an_answer_to_a_caller_that_has_just_left_goes_nowhere() -> None:
    """Its call was cancelled in this turn of the loop, so its batch does not know yet."""
    exchange = GrpcExchange(protobuf.parse(raw_request(), 8), Caller(NOBODY, None), 0, 8)
    exchange.outcome.cancel()
    exchange.fail(NotFound("too late"))
    exchange.reply(InferResponse("m", "1", [], InferRequest([])))
    assert exchange.outcome.cancelled()


async def test_the_deadline_of_the_call_reaches_the_batch() -> None:
    async with running(version(), transport=lambda: Fake(automatic=False)) as here:
        fake = here.transports["echo/1"]
        error = await refused(here.call(INFER, raw_request(), timeout=2.0))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (batch,) = fake.sent
        assert batch.members[0].deadline - time.monotonic_ns() < 1_000_000_000
        await eventually(lambda: bool(fake.cancelled))


async def test_a_request_that_runs_out_of_its_own_time_is_told_so() -> None:
    async with running(version(), transport=lambda: Fake(automatic=False)) as here, here.client() as client:
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            await client.infer("echo", [tensor(ROWS)], timeout=100_000, headers=here.bearer())


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", leaves())
def test_every_error_has_a_code_that_grpc_knows(kind: type[PenstockError]) -> None:
    """And 503 and 429 say when to come back."""
    told = status(kind("why", error_id="e1"))
    assert grpc.StatusCode[told.code] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert ("error-id", "e1") in told.trailing
    if status_of(kind("why")).http in (429, 503):
        assert ("retry-after", "1") in told.trailing


def test_a_long_message_is_cut_to_what_headers_carry() -> None:
    assert len(status(NotFound("ä" * 10_000)).message) == MAX_DETAILS


async def test_any_message_is_one_that_trailers_carry() -> None:
    """Half a surrogate would end no call at all."""
    assert status(NotFound("a\r\nb\x00\x1b\ud800é")).message == "a��b���é"
    message, error_id = "the model\r\nX: y\x00\ud800 failed " + "z" * 10_000, "0123456789abcdef"
    async with running(version(), transport=lambda: Fake(automatic=False)) as here:
        fake = here.transports["echo/1"]
        call = asyncio.ensure_future(here.call(INFER, raw_request()))
        await eventually(lambda: bool(fake.waiting))
        fake.fail(ModelFailed(message, error_id=error_id))
        error = await refused(call)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert (error.details() or "").startswith("the model��X: y�� failed zz")
        assert trailing(error)["error-id"] == error_id


async def test_a_model_that_is_not_ready_says_when_to_come_back() -> None:
    async with running(failed=version("broken")) as here:
        error = await refused(here.call(INFER, raw_request("broken")))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert trailing(error)["retry-after"] == "1"


async def test_a_failing_model_is_internal_with_the_id_of_its_log() -> None:
    async with running(version(), transport=lambda: Fake(automatic=False)) as here:
        fake = here.transports["echo/1"]
        call = asyncio.ensure_future(here.call(INFER, raw_request()))
        await eventually(lambda: bool(fake.waiting))
        fake.fail(ModelFailed("the model failed", error_id="abc"))
        error = await refused(call)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "the model failed"
        assert trailing(error)["error-id"] == "abc"


async def test_a_defect_of_ours_shows_nothing_of_the_inside() -> None:
    """An answer that cannot be rendered: the caller gets an id, not a traceback."""

    def nonsense(batch: Batch) -> list[Any]:
        return [[Output("x", "FP32", ("boom",), b"")]]  # type: ignore[arg-type]

    async with running(version(), transport=lambda: Fake(compute=nonsense)) as here:
        error = await refused(here.call(INFER, raw_request(), timeout=20.0))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "boom" not in (error.details() or "")
        assert trailing(error)["error-id"]


@pytest.mark.parametrize(
    ("body", "code", "names"),
    [
        (raw_request("nope"), "NOT_FOUND", "nope"),
        (raw_request("../etc"), "INVALID_ARGUMENT", "model name"),
        (raw_request(model_version="9"), "NOT_FOUND", "9"),
        (raw_request(array=np.zeros((1, 5), np.float32)), "INVALID_ARGUMENT", "'x'"),
        (raw_request(array=np.zeros((9, 4), np.float32)), "INVALID_ARGUMENT", "9 rows"),
        (b"\xff\xff", "INVALID_ARGUMENT", "malformed"),
        (b"", "INVALID_ARGUMENT", "model name"),
    ],
)
async def test_bad_requests_are_refused_by_name(body: bytes, code: str, names: str) -> None:
    async with running() as here:
        error = await refused(here.call(INFER, body))
        assert error.code() is grpc.StatusCode[code]
        assert names in (error.details() or "")


async def test_methods_of_extensions_that_are_not_offered_say_so() -> None:
    async with running() as here, here.client() as client:
        for call in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
            with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
                await call(headers=here.bearer())


async def test_there_is_one_repository() -> None:
    async with running() as here:
        request = service_pb2.RepositoryIndexRequest(repository_name="second").SerializeToString()
        error = await refused(here.call("/inference.GRPCInferenceService/RepositoryIndex", request))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_configuration_as_json_is_what_perf_tools_read() -> None:
    async with running() as here, here.client() as client:
        told = await client.get_model_config("echo", headers=here.bearer(), as_json=True)
        assert json.loads(json.dumps(told))["config"]["dynamic_batching"]["preferred_batch_size"] == [8]


def _anyone(here: Running) -> Any:
    return here.plane._verifier.verify(here.keys.admin.encode())


@pytest.mark.parametrize("path", [INFER, "/inference.GRPCInferenceService/ServerLive", "/no.Such/Method"])
@pytest.mark.parametrize("key", ["", None])
async def test_every_call_names_its_request_and_its_trace(path: str, key: str | None) -> None:
    """In its trailers, whether it was answered or refused."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with running(version()) as here:
        metadata = [("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"), ("x-request-id", "order-7")]
        if key is not None:
            metadata.append(("authorization", f"Bearer {here.keys.predict}"))
        call = here.unary(path)(raw_request() if path == INFER else b"", metadata=metadata, timeout=10)
        trailers = dict(await call.trailing_metadata() or ())
        assert (trailers["x-request-id"], trailers["x-trace-id"]) == ("order-7", trace_id)


async def test_forged_trace_metadata_fails_no_call() -> None:
    async with running(version()) as here:
        bearer = ("authorization", f"Bearer {here.keys.predict}")
        for name, value in (("traceparent", "0" * 4000), ("tracestate", "="), ("baggage", "k=v," * 1000)):
            call = here.unary(INFER)(raw_request(), metadata=[bearer, (name, value)], timeout=10)
            assert await call
            trailers = dict(await call.trailing_metadata() or ())
            assert trailers["x-request-id"] == trailers["x-trace-id"]


async def test_a_key_that_only_observes_asks_nothing() -> None:
    """It is given to a scraper, and may do nothing else."""

    async def never(caller: Caller, body: bytes, deadline: int) -> bytes:
        raise AssertionError

    key, verifier = new_key(), Verifier()
    verifier.replace([Credential(Principal(key.key_id, "p", "p", OBSERVE), key.digest, 0)])
    with pytest.raises(PermissionDenied):
        Methods(verifier, [{"/s/M": Method(never)}]).begin("/s/M", {"x-api-key": key.secret})
