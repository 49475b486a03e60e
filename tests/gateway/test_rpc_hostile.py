"""Who may call what over gRPC, and what a hostile or broken client gets: an answer, soon, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

from core.errors import Unavailable
from gateway.rpc import SERVICE
from gateway.rpc_standard import HEALTH, REFLECTION
from gateway.transports.fake import Fake
from tests.gateway.grpc_running import Running, running, version
from tests.gateway.test_rpc import INFER, eventually, raw_request, refused

PUBLIC = {
    f"/{SERVICE}/ServerLive",
    f"/{SERVICE}/ServerReady",
    f"/{HEALTH}/Check",
    f"/{HEALTH}/Watch",
}
CHECK, WATCH = f"/{HEALTH}/Check", f"/{HEALTH}/Watch"
REFLECT = f"/{REFLECTION}/ServerReflectionInfo"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def every_path(here: Running) -> set[str]:
    """Of the live server, and of the service's definition, and some that no one ever defined."""
    live = set(here.server.paths)
    defined = {
        f"/{SERVICE}/{method.name}"
        for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    }
    odd = {"/a.b/C", f"/{SERVICE}/modelinfer", f"//{SERVICE}/ServerLive", f"/{SERVICE}/ServerLive/", f"/{SERVICE}/"}
    return live | defined | odd | {path.replace("v1alpha", "v1") for path in live}


async def code_of(here: Running, path: str, headers: list[tuple[str, str]], *bodies: bytes) -> grpc.StatusCode:
    """How a call ends that brings these messages. A watch that has begun counts as OK."""
    if path == WATCH and bodies:
        watch = here.channel.unary_stream(path, bytes, bytes)(bodies[0], metadata=headers, timeout=10)
        with suppress(grpc.aio.AioRpcError):
            await watch.read()
            watch.cancel()
            return grpc.StatusCode.OK
        return await watch.code()
    call = here.channel.stream_unary(path, bytes, bytes)(iter(bodies), metadata=headers, timeout=10)
    with suppress(grpc.aio.AioRpcError):
        await call
    return await call.code()


async def then_silence(*bodies: bytes) -> AsyncIterator[bytes]:
    """Messages, and then no more, and no end either."""
    for body in bodies:
        yield body
    await asyncio.Event().wait()


# --- credentials --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        ("authorization", "Bearer "),
        ("authorization", "Basic psk_0123456789ab_x"),
        ("authorization", "Bearer psk_0123456789ab_" + "x" * 43),
        ("authorization", "Bearer " + "x" * 10_000),
    ],
)
async def test_without_a_good_credential_everything_but_the_public_methods_is_refused(
    header: tuple[str, str] | None,
) -> None:
    """Methods and services that do not exist too: nobody learns which ones do."""
    async with running() as here:
        for path in sorted(every_path(here)):
            code = await code_of(here, path, [header] if header else [], b"")
            expected = grpc.StatusCode.OK if path in PUBLIC else grpc.StatusCode.UNAUTHENTICATED
            assert code is expected, path


async def test_an_expired_key_is_no_credential() -> None:
    async with running() as here:
        error = await refused(here.call(INFER, raw_request(), key=here.keys.expired))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "expired" in (error.details() or "")


async def test_a_key_is_taken_by_either_name() -> None:
    async with running() as here:
        for header in (("authorization", f"bearer {here.keys.predict}"), ("x-api-key", here.keys.predict)):
            assert await code_of(here, f"/{SERVICE}/ServerMetadata", [header], b"") is grpc.StatusCode.OK


async def test_with_a_credential_what_does_not_exist_is_unimplemented() -> None:
    async with running() as here:
        bearer = [("x-api-key", here.keys.admin)]
        for path in sorted(every_path(here) - set(here.server.paths)):
            assert await code_of(here, path, bearer, b"") is grpc.StatusCode.UNIMPLEMENTED, path


async def test_a_refused_caller_is_refused_before_its_message_is_read() -> None:
    async with running(body_timeout_s=60) as here:
        call = here.channel.stream_unary(INFER, bytes, bytes)(then_silence(), timeout=10)
        error = await refused(call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("path", [INFER, f"/{SERVICE}/ModelStreamInfer"])
@pytest.mark.parametrize("key", [None, "predict"])
async def test_an_error_is_a_status_and_no_message(path: str, key: str | None) -> None:
    """Also for who reads a stream, as Triton's streaming client does, and would take a message for an answer."""
    async with running() as here:
        headers = [("x-api-key", here.keys.predict)] if key else []
        call = here.stream(path)(then_silence(raw_request("unknown")), metadata=headers, timeout=10)
        await refused(call.read())


async def test_what_is_refused_before_it_is_read_is_counted() -> None:
    async with running(max_body_bytes=100, body_timeout_s=1.0) as here:
        await refused(here.call(INFER, raw_request(), key=None))
        await refused(here.call(INFER, bytes(200)))
        await refused(here.call(INFER, b"\xff"))
        await refused(here.call(f"/{SERVICE}/ModelReady", raw_request(), key=None))  # no infer request
        bearer = [("x-api-key", here.keys.predict)]
        await refused(here.channel.stream_unary(INFER, bytes, bytes)(then_silence(), metadata=bearer, timeout=10))
        counted = dict(here.routes.recorder.meters.unrouted)
        assert counted == {"unauthenticated": 1, "too_large": 1, "invalid_request": 1, "slow_sender": 1}


# --- bytes --------------------------------------------------------------------------------------------------------


async def test_no_bytes_make_the_server_fail_or_hang() -> None:
    """Random and damaged messages to every method: each call ends, and never as INTERNAL or UNKNOWN."""
    dice = random.Random(8)
    whole = raw_request()
    async with running() as here:
        for path in sorted(set(here.server.paths) - {WATCH}):
            for body in [
                *(_damaged(dice, whole) for _ in range(25)),
                *(dice.randbytes(dice.randrange(60)) for _ in range(25)),
            ]:
                code = await code_of(here, path, [("x-api-key", here.keys.admin)], body)
                assert code not in (
                    grpc.StatusCode.INTERNAL,
                    grpc.StatusCode.UNKNOWN,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ), (path, body)
        await here.call(INFER, whole)


def _damaged(dice: random.Random, body: bytes) -> bytes:
    damaged = bytearray(body)
    for _ in range(dice.randrange(1, 4)):
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    return bytes(damaged[: dice.randrange(1, len(damaged) + 1)])


@pytest.mark.parametrize("excess", [1, 200_000])
async def test_a_message_beyond_the_limit_is_exhausting(excess: int) -> None:
    """A little beyond, our own check says what the limit is; far beyond, the library stops reading."""
    async with running(max_body_bytes=100_000) as here:
        error = await refused(here.call(INFER, bytes(100_000 + excess)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than" in (error.details() or "")


async def test_a_compressed_message_counts_as_what_it_becomes() -> None:
    """And is not unpacked beyond the limit: the library itself stops."""
    async with running(max_body_bytes=100_000) as here:
        call = here.unary(INFER)(
            bytes(50_000_000),
            metadata=[("x-api-key", here.keys.predict)],
            compression=grpc.Compression.Gzip,
            timeout=20,
        )
        error = await refused(call)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "Decompressed message larger than max"
        fits = here.unary(INFER)(
            raw_request(), metadata=[("x-api-key", here.keys.predict)], compression=grpc.Compression.Gzip
        )
        assert await fits


async def test_a_call_without_a_message_is_told_so() -> None:
    async with running() as here:
        for path in (INFER, CHECK, WATCH, f"/{SERVICE}/ServerLive"):
            code = await code_of(here, path, [("x-api-key", here.keys.predict)])
            assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_that_does_not_come_is_not_waited_for() -> None:
    async with running(body_timeout_s=1.0) as here:
        call = here.channel.stream_unary(INFER, bytes, bytes)(
            then_silence(), metadata=[("x-api-key", here.keys.predict)], timeout=10
        )
        error = await refused(call)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "1 s" in (error.details() or "")
        await here.call(INFER, raw_request())


async def test_an_error_with_a_long_name_still_arrives() -> None:
    async with running() as here:
        error = await refused(here.call(INFER, raw_request(model="m" + "ä" * 50_000)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


# --- health and reflection ----------------------------------------------------------------------------------------


def asked(service: str) -> bytes:
    body: bytes = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return body


def health(body: Any) -> Any:
    return health_pb2.HealthCheckResponse.FromString(body).status


async def test_health_is_that_of_the_server_and_of_the_service() -> None:
    async with running() as here:
        for service in ("", SERVICE):
            assert health(await here.call(CHECK, asked(service), key=None)) == SERVING
        here.health.set(False)
        assert health(await here.call(CHECK, asked(""), key=None)) == NOT_SERVING
        ready = service_pb2.ServerReadyResponse.FromString(await here.call(f"/{SERVICE}/ServerReady", key=None))
        assert not ready.ready
        error = await refused(here.call(CHECK, asked("nope"), key=None))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_of_each_change() -> None:
    async with running() as here:
        call = here.stream(WATCH)(iter([asked(SERVICE)]), timeout=10)
        assert health(await call.read()) == SERVING
        here.health.set(False)
        assert health(await call.read()) == NOT_SERVING
        here.health.set(True)
        assert health(await call.read()) == SERVING
        call.cancel()


async def test_a_watched_service_may_be_unknown() -> None:
    async with running() as here:
        call = here.stream(WATCH)(iter([asked("later")]), timeout=10)
        assert health(await call.read()) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        call.cancel()


async def test_reflection_lists_the_services_and_describes_them() -> None:
    async with running() as here:
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such"),
        ]
        call = here.stream(REFLECT)(
            iter([question.SerializeToString() for question in questions]),
            metadata=[("x-api-key", here.keys.predict)],
            timeout=10,
        )
        answers = [reflection_pb2.ServerReflectionResponse.FromString(body) async for body in call]
        names = {service.name for service in answers[0].list_services_response.service}
        assert names == {SERVICE, HEALTH, REFLECTION}
        assert b"ModelInferRequest" in b"".join(answers[1].file_descriptor_response.file_descriptor_proto)
        assert answers[2].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# --- starting and stopping ----------------------------------------------------------------------------------------


async def test_an_occupied_port_is_said_so() -> None:
    async with running() as here:
        with pytest.raises(Unavailable, match="in use"):
            async with running(grpc_port=here.server.port):
                pass


async def test_stopping_answers_what_was_accepted_and_ends_the_streams() -> None:
    """A watcher hears NOT_SERVING, an idle reflection is ended, a request in its batch gets its answer."""
    async with running(version(), transport=lambda: Fake(automatic=False)) as here:
        fake = here.transports["echo/1"]
        bearer = [("x-api-key", here.keys.predict)]
        watcher = here.stream(WATCH)(iter([asked("")]), timeout=10)
        assert health(await watcher.read()) == SERVING
        question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        reflection = here.stream(REFLECT)(then_silence(question), metadata=bearer, timeout=10)
        assert await reflection.read()
        request = asyncio.ensure_future(here.call(INFER, raw_request()))
        await eventually(lambda: bool(fake.waiting))
        here.health.set(False)
        stopping = asyncio.ensure_future(here.server.stop(10.0))
        assert health(await watcher.read()) == NOT_SERVING
        assert await watcher.code() is grpc.StatusCode.OK
        assert await reflection.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopping.done()
        fake.complete()
        assert await request
        async with asyncio.timeout(5):
            await stopping


async def test_stopping_cuts_off_what_does_not_end_in_time() -> None:
    async with running(version(), transport=lambda: Fake(automatic=False)) as here:
        fake = here.transports["echo/1"]
        request = asyncio.ensure_future(here.call(INFER, raw_request()))
        await eventually(lambda: bool(fake.waiting))
        async with asyncio.timeout(5):
            await here.server.stop(0.1)
        assert (await refused(request)).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await eventually(lambda: bool(fake.cancelled))
