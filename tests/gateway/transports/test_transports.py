"""One suite for every transport: what a batcher may rely on, whoever runs the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from core.settings import Settings
from core.topology import new_instance
from gateway.transports.base import Sample, Transport
from gateway.transports.connect import transport_for
from gateway.transports.fake import Fake
from tests.gateway.transports import replicas
from tests.gateway.transports.sending import answered, send
from tests.workers.samples import array_of, batch_of, doubler, failure_in, python_file, rows, version
from workers.child import Child
from workers.consumer import Consumer
from workers.messages import Batch, Cancel, Failure, Output
from workers.prepare import prepare
from workers.worker import Worker

BOUND_S = 20.0
SOURCE = """
import numpy as np

class Model:
    def predict(self, inputs):
        x = inputs["x"]
        if (x == 13).any():
            raise ValueError("unlucky")
        return {"y": x * 2}
"""
KINDS = ["inproc", "process", "amqp", "fake"]


def doubled(batch: Batch) -> list[list[Output] | Failure]:
    """What SOURCE answers, for the fake."""
    results: list[list[Output] | Failure] = []
    for member, piece in zip(batch.members, batch.inputs[0].pieces, strict=True):
        one = Batch(0, True, [member], [batch.inputs[0].__class__("x", "FP32", (4,), [piece])])
        array = array_of([Output("x", "FP32", (member.rows, 4), one.inputs[0].pieces[0])])
        if (array == 13).any():
            results.append(Failure("model_failed", "unlucky", "id"))
        else:
            results.append([Output("y", "FP32", array.shape, (array * 2).tobytes())])
    return results


async def opened(kind: str, folder: Path, request: pytest.FixtureRequest, stack: AsyncExitStack) -> Transport:
    settings = Settings(compute_threads=1)
    if kind == "fake":
        return Fake(samples=[Sample(1, 0.001)], compute=doubled)
    path = python_file(folder, SOURCE)
    made = version(kind="python", entry="Model")
    if kind == "process":
        child = Child(made, path, None, settings, lambda *_: None)
        await child.start()
        stack.push_async_callback(child.close)
        transport = transport_for(child, settings)
        await replicas.until(lambda: transport.window)
        return transport
    ready = await asyncio.to_thread(prepare, made, path, None, 1, 32, True)
    worker = Worker(ready.runner, ready.samples, asyncio.get_running_loop().call_soon_threadsafe)
    worker.start()
    stack.push_async_callback(worker.close)
    if kind == "amqp":
        url = request.getfixturevalue("amqp_url")
        await stack.enter_async_context(consuming(url, worker))
        return await replicas.opened(await stack.enter_async_context(replicas.hub_at(url)), made)
    return transport_for(worker, settings)


@asynccontextmanager
async def consuming(url: str, worker: Worker) -> AsyncIterator[None]:
    """A replica at the broker."""
    consumer = Consumer(url, new_instance("replica"), worker.version)
    consumer.serve(worker)
    running = asyncio.create_task(consumer.run())
    yield
    await consumer.drain(BOUND_S)
    await running


@pytest.fixture(params=KINDS)
async def transport(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Transport]:
    async with AsyncExitStack() as stack:
        transport = await opened(request.param, tmp_path, request, stack)
        yield transport
        await transport.close()


async def test_each_member_gets_its_own_rows(transport: Transport) -> None:
    """Members of several rows, in order, exactly one answer, on the loop's thread, never from inside send."""
    reply = await answered(send(transport, batch_of(rows(1), rows(2, 3), rows(4), number=7)))
    assert reply.id == 7
    assert [array_of(result)[:, 0].tolist() for result in reply.results] == [[2], [4, 6], [8]]
    assert reply.timing.executed_rows == 4


async def test_batches_in_flight_are_told_apart(transport: Transport) -> None:
    futures = [send(transport, batch_of(rows(at), number=at)) for at in range(1, 9)]
    for at, future in enumerate(futures, 1):
        reply = await answered(future)
        assert (reply.id, array_of(reply.results[0])[0, 0]) == (at, 2 * at)


async def test_a_failure_is_its_members_alone(transport: Transport) -> None:
    reply = await answered(send(transport, batch_of(rows(1), rows(13), rows(3))))
    assert array_of(reply.results[0])[0, 0] == 2
    failure = failure_in(reply.results[1])
    assert failure.reason == "model_failed"
    assert failure.error_id
    assert array_of(reply.results[2])[0, 0] == 6


async def test_the_window_is_open_and_samples_are_there(transport: Transport) -> None:
    assert transport.window == 2
    assert transport.samples
    assert all(sample.rows >= 1 and sample.seconds >= 0 for sample in transport.samples)


async def test_cancelling_is_a_hint(transport: Transport) -> None:
    """Known or unknown, in range or not: the batch is answered once, neighbours with their rows."""
    transport.cancel(Cancel(999, [0]))
    future = send(transport, batch_of(rows(1), rows(2)))
    transport.cancel(Cancel(1, [0]))
    reply = await answered(future)
    assert len(reply.results) == 2
    assert array_of(reply.results[1])[0, 0] == 4


async def test_closing_answers_what_is_in_flight(transport: Transport) -> None:
    futures = [send(transport, batch_of(rows(at), number=at)) for at in range(1, 4)]
    await asyncio.wait_for(transport.close(), BOUND_S)
    assert all(future.done() for future in futures)
    assert transport.window == 0


async def test_large_tensors_cross_whole(transport: Transport) -> None:
    """Several megabytes, more than any buffer of a socket."""
    array = rows(*range(100, 400_000))
    reply = await answered(send(transport, batch_of(array)))
    assert (array_of(reply.results[0]) == array * 2).all()


# --- the fake alone -----------------------------------------------------------------------------------------------


async def test_the_fake_can_be_told_when_to_answer() -> None:
    fake = Fake(automatic=False)
    first, second = send(fake, batch_of(rows(1), number=1)), send(fake, batch_of(rows(2), number=2))
    fake.complete(2)
    assert second.done()
    assert not first.done()
    fake.lose()
    assert failure_in(first.result().results[0]).reason == "worker_lost"


async def test_the_fake_counts_time_as_it_is_told() -> None:
    """A simulator gives it a clock of its own."""
    timers: list[tuple[float, object]] = []
    fake = Fake(service=lambda batch: batch.rows * 0.5, later=lambda seconds, call: timers.append((seconds, call)))
    future = send(fake, batch_of(rows(1, 2, 3)))
    ((seconds, call),) = timers
    assert (seconds, future.done()) == (1.5, False)
    call()  # type: ignore[operator]
    assert future.done()


async def test_a_worker_in_this_process_needs_no_copy(tmp_path: Path) -> None:
    """The array that onnxruntime returned is what callers' outputs view."""
    ready = prepare(version(), doubler(tmp_path), None, 1, 32, False)
    worker = Worker(ready.runner, ready.samples, asyncio.get_running_loop().call_soon_threadsafe)
    worker.start()
    reply = await answered(send(transport_for(worker, Settings()), batch_of(rows(1), rows(2))))
    first, second = (result[0].data for result in reply.results if isinstance(result, list))
    assert isinstance(first, memoryview)
    assert isinstance(second, memoryview)
    assert first.obj is second.obj
    await worker.close()
