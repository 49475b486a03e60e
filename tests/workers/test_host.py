"""A host makes what is loaded match what is wanted, and says how it went."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import skops.io
from onnx import helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from structlog.typing import EventDict

from core.settings import Settings
from gateway.transports.base import Transport
from gateway.transports.connect import transport_for
from repository.artifacts import FileArtifacts
from repository.commands import Commands
from repository.records import (
    ALWAYS,
    LOADING,
    NEVER,
    READY,
    UNAVAILABLE,
    UNLOADING,
    Alias,
    Version,
    VersionState,
)
from repository.sqlite import SqliteStore
from repository.watch import Watch
from tests.graphs import graph, tensor
from tests.workers.samples import array_of, batch_of, doubler, python_file, rows, version
from workers.child import Child
from workers.host import Endpoint, Host
from workers.loading import in_thread
from workers.memory import resident
from workers.messages import Reply

BOUND_S = 30.0


class Plant:
    """A repository with a host on it, and a gateway that writes down what it was told."""

    def __init__(self, store: SqliteStore, folder: Path, settings: Settings) -> None:
        self.store = store
        self.folder = folder
        self.settings = settings
        self.artifacts = FileArtifacts(folder / "artifacts")
        self.watch = Watch(store, 0.02)
        self.commands = Commands(store, self.artifacts, settings, self.watch)
        self.told: list[str] = []
        self.open: dict[tuple[str, int], Transport] = {}
        self.host = self.new_host()
        self.running = asyncio.create_task(self.watch.run())

    def new_host(self) -> Host:
        return Host(self.store, self.artifacts, self.watch, self.commands, self.settings, self._opened, self._closing)

    async def _opened(self, version: Version, endpoint: Endpoint) -> None:
        self.told.append(f"open {version.version}")
        self.open[version.model, version.version] = transport_for(endpoint, self.settings)

    async def _closing(self, model: str, version: int) -> None:
        self.told.append(f"close {version}")
        await self.open.pop((model, version)).close()

    async def push(self, path: Path, number: int = 1, **more: object) -> Version:
        """Record a version as a push does, without its checks."""

        async def chunks() -> AsyncIterator[bytes]:
            yield path.read_bytes()

        digest, _ = await self.artifacts.put(chunks(), 1 << 30)
        made = version(number=number, digest=digest, **{"inputs": (), "outputs": (), "max_batch": -1, **more})  # type: ignore[arg-type]
        await self.store.insert(made)
        await self.watch.refresh()
        return made

    async def change(self, number: int, **changes: object) -> None:
        known = await self.store.get(Version, f"m/{number}")
        assert known is not None
        await self.store.replace(msgspec.structs.replace(known, **changes))
        await self.watch.refresh()

    async def state(self, number: int) -> VersionState | None:
        return await self.store.get(VersionState, f"m/{number}")

    async def until(self, number: int, true: Callable[[VersionState | None], object]) -> VersionState | None:
        async with asyncio.timeout(BOUND_S):
            while not true(state := await self.state(number)):
                await asyncio.sleep(0.005)
        return state

    async def until_state(self, number: int, state: str, attempt: int = 1) -> VersionState:
        found = await self.until(number, lambda s: s is not None and (s.state, s.attempt) == (state, attempt))
        assert found is not None
        return found

    async def ask(self, number: int, value: float) -> float:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.open["m", number].send(batch_of(rows(value)), future.set_result)
        reply = await asyncio.wait_for(future, BOUND_S)
        return float(array_of(reply.results[0])[0, 0])


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    store = await SqliteStore.open(tmp_path / "store.db")
    plant = Plant(store, tmp_path, Settings(compute_threads=1, poll_interval_s=0.02, load_timeout_s=20))
    await plant.host.start()
    yield plant
    await plant.host.stop()
    plant.running.cancel()
    await asyncio.wait([plant.running])
    await store.close()


async def test_a_version_is_loaded_completed_opened_and_said_to_be_ready(plant: Plant) -> None:
    await plant.push(doubler(plant.folder))
    await plant.until_state(1, READY)
    assert plant.told == ["open 1"]
    assert await plant.ask(1, 4) == 8
    complete = await plant.store.get(Version, "m/1")
    assert complete is not None
    assert complete.max_batch == 32
    assert [spec.name for spec in (*complete.signature.inputs, *complete.signature.outputs)] == ["x", "y"]


async def test_a_new_version_is_ready_before_the_old_one_goes(plant: Plant) -> None:
    """Loaded beside it, opened, only then is the old one closed; requests find one or the other at every moment."""
    await plant.push(doubler(plant.folder))
    await plant.until_state(1, READY)
    await plant.push(doubler(plant.folder, name="second.onnx"), 2)
    state = await plant.until_state(1, UNAVAILABLE)
    assert state.reason == "unloaded"
    await plant.until_state(2, READY)
    assert plant.told == ["open 1", "open 2", "close 1"]
    assert await plant.ask(2, 4) == 8


async def test_a_full_disk_keeps_nothing_from_being_served(plant: Plant) -> None:
    """A server that starts on one loads what it had; how that went is written as soon as there is room, a failure
    likewise."""
    await plant.push(doubler(plant.folder))
    await plant.until_state(1, READY)
    await plant.host.stop()
    await plant.store.replace(msgspec.structs.replace(await plant.until_state(1, READY), state=LOADING))
    broken = plant.folder / "broken.onnx"
    broken.write_bytes(b"no model")
    await plant.push(broken, 2)
    with sqlite3.connect(plant.folder / "store.db") as database:
        database.execute("CREATE TRIGGER f BEFORE UPDATE ON clock BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    plant.host = plant.new_host()
    await plant.host.start()
    async with asyncio.timeout(BOUND_S):
        while plant.host.unsettled() or ("m", 1) not in plant.open:
            await asyncio.sleep(0.005)
    assert await plant.ask(1, 4) == 8
    states = [await plant.state(number) for number in (1, 2)]
    assert [state and state.state for state in states] == [LOADING, None]
    with database:
        database.execute("DROP TRIGGER f")
    database.close()
    await plant.until_state(1, READY)
    await plant.until_state(2, UNAVAILABLE)


async def test_a_version_that_fails_leaves_the_old_one_serving(plant: Plant) -> None:
    await plant.push(doubler(plant.folder))
    await plant.until_state(1, READY)
    bad = plant.folder / "bad.onnx"
    bad.write_bytes(b"nonsense")
    await plant.push(bad, 2)
    state = await plant.until_state(2, UNAVAILABLE)
    assert "no ONNX model" in state.reason
    assert str(plant.folder) not in state.reason
    assert plant.told == ["open 1"]
    assert await plant.ask(1, 4) == 8


async def test_a_failed_version_is_tried_again_when_somebody_asks(plant: Plant) -> None:
    """The artifact was damaged; once it is mended a load by name finds it well."""
    made = await plant.push(doubler(plant.folder), wanted=NEVER)
    path = await plant.artifacts.fetch(made.digest)
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    await plant.change(1, wanted=ALWAYS, attempt=2)
    state = await plant.until_state(1, UNAVAILABLE, 2)
    assert "damaged" in state.reason
    path.write_bytes(whole)
    await plant.change(1, attempt=3)
    await plant.until_state(1, READY, 3)


async def test_a_missing_artifact_is_told(plant: Plant) -> None:
    made = await plant.push(doubler(plant.folder), wanted=NEVER)
    await plant.until_state(1, UNAVAILABLE)
    await plant.artifacts.delete(made.digest)
    await plant.change(1, wanted=ALWAYS, attempt=2)
    state = await plant.until_state(1, UNAVAILABLE, 2)
    assert state.reason


async def test_unloading_and_loading_by_name_are_answered(plant: Plant) -> None:
    await plant.push(doubler(plant.folder))
    await plant.until_state(1, READY)
    await plant.change(1, wanted=NEVER, attempt=2)
    assert (await plant.until_state(1, UNAVAILABLE, 2)).reason == "unloaded"
    await plant.change(1, wanted=ALWAYS, attempt=3)
    await plant.until_state(1, READY, 3)
    await plant.change(1, attempt=4)
    await plant.until_state(1, READY, 4)
    assert plant.told == ["open 1", "close 1", "open 1"]


async def test_aliased_versions_are_loaded_too(plant: Plant) -> None:
    await plant.push(doubler(plant.folder))
    await plant.push(doubler(plant.folder, name="b.onnx"), 2)
    await plant.until_state(2, READY)
    await plant.store.insert(Alias(model="m", alias="champion", version=1))
    await plant.watch.refresh()
    await plant.until_state(1, READY)


async def test_a_deleted_version_goes_without_a_trace(plant: Plant) -> None:
    await plant.push(doubler(plant.folder))
    await plant.until_state(1, READY)
    known = await plant.store.get(Version, "m/1")
    assert known is not None
    await plant.store.delete(known)
    await plant.watch.refresh()
    await plant.until(1, lambda state: state is None)
    assert plant.told == ["open 1", "close 1"]


async def test_states_of_a_dead_process_are_reset(tmp_path: Path) -> None:
    """What it said it held is loaded anew, or said to be unloaded."""
    store = await SqliteStore.open(tmp_path / "store.db")
    plant = Plant(store, tmp_path, Settings(compute_threads=1, poll_interval_s=0.02))
    for number, state in ((1, UNLOADING), (2, READY)):
        await plant.push(doubler(tmp_path), number)
        await store.insert(VersionState(model="m", version=number, state=state))
    await plant.watch.refresh()
    await plant.host.start()
    await plant.until(1, lambda said: said is not None and said.state == UNAVAILABLE)
    await plant.until(2, lambda said: said is not None and said.state == READY and said.revision > 1)
    assert plant.told == ["open 2"]
    await plant.host.stop()
    plant.running.cancel()
    await store.close()


async def test_after_a_stop_what_served_before_serves_again(tmp_path: Path) -> None:
    """Stopping lets everything go; the next start loads what was ready, also where a higher version cannot be."""
    store = await SqliteStore.open(tmp_path / "store.db")
    plant = Plant(store, tmp_path, Settings(compute_threads=1, poll_interval_s=0.02))
    await plant.host.start()
    await plant.push(doubler(tmp_path))
    await plant.until_state(1, READY)
    (tmp_path / "no model").write_bytes(b"no model at all")
    await plant.push(tmp_path / "no model", 2)
    await plant.until_state(2, UNAVAILABLE)
    await plant.host.stop()
    assert plant.told == ["open 1", "close 1"]
    plant.running.cancel()
    again = Plant(store, tmp_path, Settings(compute_threads=1, poll_interval_s=0.02))
    await again.watch.refresh()
    await again.host.start()
    await again.until(1, lambda said: said is not None and said.state == READY and again.told == ["open 1"])
    await again.host.stop()
    again.running.cancel()
    await store.close()


SOURCE = """
class Model:
    def predict(self, inputs):
        return {"y": inputs["x"] * 3}
"""


async def test_code_is_hosted_by_a_child_whose_troubles_are_told(plant: Plant) -> None:
    """Killed, it is UNAVAILABLE with the reason, then READY again with the count; it is not loaded anew."""
    made = version()
    await plant.push(
        python_file(plant.folder, SOURCE),
        kind="python",
        entry="Model",
        inputs=made.signature.inputs,
        outputs=made.signature.outputs,
    )
    await plant.until_state(1, READY)
    child = plant.host._held["m", 1].endpoint
    assert isinstance(child, Child)
    child.kill("of a test")
    await plant.until(1, lambda said: said is not None and "of a test" in said.reason and said.state == UNAVAILABLE)
    await plant.until(1, lambda said: said is not None and "started again" in said.reason and said.state == READY)
    async with asyncio.timeout(BOUND_S):
        while not plant.open["m", 1].window:
            await asyncio.sleep(0.005)
    assert await plant.ask(1, 2) == 6
    assert plant.told == ["open 1"]


async def test_sklearn_serves_in_process(plant: Plant) -> None:
    path = plant.folder / "e.skops"
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    skops.io.dump(LogisticRegression().fit(x, x[:, 0] > 18), path)
    await plant.push(path, kind="sklearn", inputs=version().signature.inputs)
    await plant.until_state(1, READY)
    complete = await plant.store.get(Version, "m/1")
    assert complete is not None
    assert [o.name for o in complete.signature.outputs] == ["predict", "predict_proba"]


async def test_a_defect_of_ours_is_told_by_its_id_only(plant: Plant, logged: list[EventDict]) -> None:
    """Whatever is raised that is not meant for people stands in the log, under the id that the reason names."""

    async def broken(version: Version, endpoint: Endpoint) -> None:
        raise KeyError("/secret/path")

    plant.host._opened = broken
    await plant.push(doubler(plant.folder))
    state = await plant.until_state(1, UNAVAILABLE)
    assert "secret" not in state.reason
    (entry,) = (entry for entry in logged if entry["event"] == "version not loaded")
    assert entry["error_id"] in state.reason


async def test_two_versions_load_at_a_time(plant: Plant) -> None:
    """The others say LOADING while they wait for their turn."""
    inside, gate = 0, asyncio.Event()

    async def slow(version: Version, endpoint: Endpoint) -> None:
        nonlocal inside
        inside += 1
        await gate.wait()
        await plant._opened(version, endpoint)

    plant.host._opened = slow
    for number in range(1, 6):
        await plant.push(doubler(plant.folder), number, wanted=ALWAYS)
    for number in range(1, 6):
        await plant.until_state(number, LOADING)
    async with asyncio.timeout(BOUND_S):
        while inside < 2:
            await asyncio.sleep(0.005)
    await plant.push(doubler(plant.folder), 6)
    await plant.until_state(6, LOADING)
    assert inside == 2
    gate.set()
    for number in range(1, 7):
        await plant.until_state(number, READY)


async def test_unloaded_models_give_their_memory_back(plant: Plant) -> None:
    """Ten rolling updates of a model with 40 MB of weights leave nothing like its size behind."""
    weights = numpy_helper.from_array(np.ones((4, 2_500_000), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ReduceMax", ["h"], ["y"], keepdims=1)]
    path = plant.folder / "big.onnx"
    path.write_bytes(graph(nodes, [tensor("x", "FP32", "n", 4)], [tensor("y", "FP32", 1, 1)], [weights]))
    sizes = []
    for number in range(1, 11):
        await plant.push(path, number, max_batch=0)
        await plant.until_state(number, READY)
        await plant.until(number - 1, lambda said: said is None or said.state == UNAVAILABLE)
        sizes.append(resident(os.getpid()))
    assert sizes[-1] - sizes[1] < 60_000_000


async def test_a_result_that_comes_too_late_is_put_away() -> None:
    """A load that was given up: its model is closed when it arrives."""
    gate, late = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> str:
        gate.wait(BOUND_S)
        return "model"

    task = asyncio.create_task(in_thread(slow, lambda result: loop.call_soon(late.set)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    gate.set()
    await asyncio.wait_for(late.wait(), BOUND_S)
