"""A replica without Ray: from its first beat to its last reply, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.beats import FAILED, READY, STARTING
from core.settings import Settings
from repository.opening import open_repository
from repository.records import Version
from tests.workers.asking import Doubler, gateway_at, until
from tests.workers.samples import array_of, batch_of, doubler, python_file, rows, version
from workers import replica
from workers.execution import Runner
from workers.replica import Hosted, threads_of
from workers.watchdog import HUNG
from workers.worker import Worker

DOUBLES = """
    class Doubles:
        def predict(self, inputs):
            return {"y": inputs["x"] * 2}
"""


@pytest.fixture
def settings(tmp_path: Path, amqp_url: str) -> Settings:
    return Settings(amqp_url=amqp_url, home=tmp_path, compute_threads=1, poll_interval_s=0.05, drain_timeout_s=5)


async def stored(settings: Settings, artifact: Path, **more: Any) -> Version:
    """A version whose artifact is in the repository."""

    async def pieces() -> AsyncIterator[bytes]:
        yield artifact.read_bytes()

    store, artifacts = await open_repository(settings)
    digest, _ = await artifacts.put(pieces(), 1 << 20)
    await store.close()
    return version(digest=digest, **more)


@pytest.mark.parametrize(("kind", "entry"), [("onnx", ""), ("python", "Doubles")])
async def test_it_answers_and_leaves_when_it_has_answered(
    settings: Settings, tmp_path: Path, kind: str, entry: str
) -> None:
    """Code runs in a child process of the replica."""
    artifact = doubler(tmp_path) if kind == "onnx" else python_file(tmp_path, DOUBLES)
    made = await stored(settings, artifact, kind=kind, entry=entry)
    async with gateway_at(settings.amqp_url, made) as asking:
        hosted = Hosted(made, settings, "cpu")
        await hosted.start()
        await asking.until_ready()
        answer = await asking.ask(batch_of(rows(1), rows(2)))
        assert [array_of(result)[0, 0] for result in await answer.done()] == [2, 4]
        hosted.check()
        await hosted.stop()
        late = await asking.ask(batch_of(rows(3)))
        assert await asking.waiting() == 1
        assert not late.whole
        with pytest.raises(RuntimeError, match="its consumer has ended"):
            hosted.check()


async def test_a_gpu_that_is_not_used_is_told(settings: Settings, tmp_path: Path) -> None:
    """The device that beats name is the one that the model runs on."""
    made = await stored(settings, doubler(tmp_path), kind="onnx")
    async with gateway_at(settings.amqp_url, made) as asking:
        hosted = Hosted(made, settings, "cuda:0")
        await hosted.start()
        await asking.until_ready()
        assert (asking.heard[-1].device, "GPU is not used" in asking.heard[-1].note) == ("cpu", True)
        await hosted.stop()


async def test_it_beats_before_it_is_warm_and_takes_nothing(settings: Settings, tmp_path: Path) -> None:
    """What comes meanwhile waits at the broker, and is answered then."""
    slow = python_file(tmp_path, DOUBLES + "        def load(self):\n            import time; time.sleep(1.5)\n")
    made = await stored(settings, slow, kind="python", entry="Doubles")
    async with gateway_at(settings.amqp_url, made) as asking:
        hosted = Hosted(made, settings, "cpu")
        starting = asyncio.create_task(hosted.start())
        answer = await asking.ask(batch_of(rows(1)))
        await until(lambda: any(beat.state == STARTING for beat in asking.heard))
        assert not answer.whole
        (result,) = await answer.done()
        assert array_of(result)[0, 0] == 2
        await starting
        await until(lambda: any(beat.state == READY for beat in asking.heard))
        await hosted.stop()
        states = [beat.state for beat in asking.heard]
        assert states.index(STARTING) < states.index(READY)


async def test_what_cannot_be_served_is_told_until_it_is_taken_away(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays healthy long enough to be heard; then another one had better try."""
    junk = tmp_path / "junk"
    junk.write_bytes(b"junk")
    made = await stored(settings, junk)
    async with gateway_at(settings.amqp_url, made) as asking:
        hosted = Hosted(made, settings, "cpu")
        await hosted.start()
        await until(lambda: sum(beat.state == FAILED for beat in asking.heard) >= 2)
        assert "protobuf cannot be read" in asking.heard[-1].reason
        hosted.check()
        monkeypatch.setattr(replica, "FAILED_FOR_S", 0.0)
        with pytest.raises(RuntimeError, match="its version was not loaded"):
            hosted.check()
        await hosted.stop()


async def test_a_model_that_hangs_in_it_ends_its_process(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it beats as if nothing were: beats come from the event loop."""
    model, made, ended = Doubler(), version(), list[int]()
    worker = Worker(Runner(made, model), [], asyncio.get_running_loop().call_soon_threadsafe)
    worker.start()

    async def loaded(*_: object) -> tuple[Worker, str]:
        return worker, ""

    monkeypatch.setattr(replica, "load", loaded)
    impatient = settings.model_copy(update={"child_patience_s": 0.1})
    async with gateway_at(settings.amqp_url, made) as asking:
        hosted = Hosted(made, impatient, "cpu", ended.append)
        await hosted.start()
        await asking.until_ready()
        model.gate.clear()
        await asking.ask(batch_of(rows(1)))
        await until(lambda: ended)
        assert ended == [HUNG]
        assert asking.heard[-1].state == READY
        model.gate.set()
        await hosted.stop()


async def test_it_waits_for_a_repository_that_is_away(settings: Settings, tmp_path: Path) -> None:
    """And says so meanwhile: a replica that is restarted then must not fail."""
    made = await stored(settings, doubler(tmp_path))
    for file in tmp_path.glob("repository.sqlite*"):
        file.unlink()
    (tmp_path / "repository.sqlite").mkdir()
    async with gateway_at(settings.amqp_url, made) as asking:
        hosted = Hosted(made, settings, "cpu")
        starting = asyncio.create_task(hosted.start())
        await until(lambda: any(beat.state == STARTING and beat.reason for beat in asking.heard))
        (tmp_path / "repository.sqlite").rmdir()
        await starting
        await asking.until_ready()
        await hosted.stop()


@pytest.mark.parametrize(("cpus", "cores", "threads"), [(0.1, 2, 1), (1, 2, 1), (2.9, 8, 2), (4, 2, 2), (0, 1, 1)])
def test_threads_fit_the_reservation_and_the_cores(cpus: float, cores: int, threads: int) -> None:
    assert threads_of(cpus, cores) == threads
