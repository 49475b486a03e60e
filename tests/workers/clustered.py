"""`penstock workers` as a process of its own, and a repository, a broker and a Ray cluster to do it on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aio_pika

from core import beats
from core.beats import GatewayBeat, ReplicaBeat, Share
from core.broker import exchanges
from core.fleet import Fleet
from core.identity import ADMIN, CODE, Principal
from core.settings import Settings
from core.topology import new_instance
from repository.commands import Commands
from repository.manifest import Manifest
from repository.opening import open_repository
from repository.records import Version, VersionState
from repository.watch import Watch
from tests.running import COMMAND, clean_environment
from tests.workers.asking import until

PUSHER = Principal("tests", "tests", "tests", ADMIN, grants=frozenset({CODE}))
WITHIN_S = 60.0


class Driver:
    """One process of `penstock workers`."""

    def __init__(self, settings: Settings, log: Path) -> None:
        told = settings.model_dump(mode="json", exclude_unset=True)
        self._environment = {f"PENSTOCK_{name.upper()}": str(value) for name, value in told.items()}
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [COMMAND, "workers"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean_environment() | _cluster() | self._environment,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(WITHIN_S)


def _cluster() -> dict[str, str]:
    """How to join the cluster that this process has been told of."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


class Site:
    """A repository in a folder, seen as the control plane sees it, and the broker as a gateway does."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings = settings
        self.log = log
        self.fleet = Fleet()
        self.instance = new_instance("gateway")
        self.open: list[Share] | None = None
        """What a gateway says that it may send to; None: there is no gateway."""

    async def __aenter__(self) -> Site:
        self._store, artifacts = await open_repository(self.settings)
        self.watch = Watch(self._store, 0.2)
        self.commands = Commands(self._store, artifacts, self.settings, self.watch)
        await self.watch.refresh()
        self._connection = await aio_pika.connect(self.settings.amqp_url)
        channel = await self._connection.channel()
        _, self._beats = await exchanges(channel)
        ears = await channel.declare_queue(exclusive=True)
        await ears.bind(self._beats, "replica.#")
        await ears.consume(self._heard, no_ack=True)
        self._tasks = [asyncio.create_task(self.watch.run()), asyncio.create_task(self._beat_on())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.close()
        await self._store.close()

    async def push(self, model: str, artifact: Path, **manifest: Any) -> Version:
        async def pieces() -> AsyncIterator[bytes]:
            yield artifact.read_bytes()

        return await self.commands.push(model, Manifest(**{"format": "onnx"} | manifest), pieces(), PUSHER)

    async def state(self, model: str, version: int, *states: str, reason: str = "") -> VersionState:
        """The version's state once it is one of these, and its reason has that in it."""

        def found(catalog: Any) -> VersionState | None:
            state: VersionState | None = catalog.states.get((model, version))
            return state if state is not None and state.state in states and reason in state.reason else None

        state = await self.watch.until(found, WITHIN_S)
        assert state is not None, (self.watch.catalog.states.get((model, version)), self.said()[-4000:])
        return state

    def replicas(self, model: str, version: int = 1) -> list[ReplicaBeat]:
        """Those that are ready now."""
        return self.fleet.ready(model, version, time.monotonic_ns())

    async def until_ready(self, model: str, version: int = 1, count: int = 1) -> list[ReplicaBeat]:
        await until(lambda: len(self.replicas(model, version)) == count, WITHIN_S)
        return self.replicas(model, version)

    def says(self, *places: tuple[str, int]) -> None:
        """From now on a gateway lives that may send to these versions."""
        self.open = [Share(*place) for place in places]

    def said(self) -> str:
        """What the drivers wrote."""
        return self.log.read_text(errors="replace")

    async def _heard(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        beat = beats.decode(message.body)
        assert isinstance(beat, ReplicaBeat)
        self.fleet.hear(beat, time.monotonic_ns())

    async def _beat_on(self) -> None:
        while True:
            if self.open is not None:
                now = time.monotonic_ns()
                beat = GatewayBeat(
                    sender=self.instance, boot=beats.boot_id(), sent=now, revision=1, ready=True, open=self.open
                )
                await self._beats.publish(aio_pika.Message(beats.encode(beat)), "gateway", mandatory=False)
            await asyncio.sleep(0.2)


@contextlib.contextmanager
def driving(settings: Settings, log: Path) -> Iterator[Driver]:
    """`penstock workers`, stopped at the end; what it deployed is left to Ray."""
    driver = Driver(settings, log)
    try:
        yield driver
        assert driver.stop() == 0
    except BaseException as error:
        error.add_note(log.read_text(errors="replace")[-4000:])
        raise
    finally:
        driver.kill()
