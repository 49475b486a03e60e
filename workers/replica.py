"""A Ray Serve replica: one process that loads one version and takes its batches from the broker.

    its process lives: beats STARTING ─► loads and warms ─► READY, takes batches ─► asked to stop: drains, leaves
                                             │                       └── its model hangs in it: ends at once
                                             └── it cannot be served: beats FAILED and why, until it is taken away

Ray Serve places, counts and restarts replicas; no request passes through it. Its constructor returns when the model is
warm, so that Serve calls running what serves, and keeps the old replicas of an update as long as it does not.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from core import logs
from core.beats import FAILED, STARTING
from core.errors import Unavailable
from core.settings import Settings
from core.telemetry import WORKER_SERVICE
from core.topology import new_instance
from core.watched import Watched
from repository.opening import open_repository
from repository.records import Version
from workers.child import Child
from workers.child_link import ChildLink
from workers.consumer import Consumer
from workers.draining import bounds
from workers.endpoint import Endpoint
from workers.fetched_keys import FetchedKeys
from workers.folder import sweep
from workers.loading import load, refusal
from workers.recorder import Recorder
from workers.runtimes.base import ON_GPU
from workers.settings_file import settings_from
from workers.watchdog import watch
from workers.worker import Worker

log = structlog.get_logger(__name__)

FAILED_FOR_S = 30.0
"""A replica that failed is left alone this long: who deploys it hears why and takes it away, else Serve replaces it."""


class Hosted:
    """One version at the broker, from the first beat to the last reply. `device`: what there is for it. `end`: how this
    process ends at once, with an exit code, where its model hangs in it."""

    def __init__(
        self, version: Version, settings: Settings, device: str, end: Callable[[int], object] = os._exit
    ) -> None:
        self.instance = new_instance("replica")
        self._version = version
        self._settings = settings
        self._device = device if version.format in ON_GPU else "cpu"
        self._unused = "" if device == self._device else f"{version.format} models run on the CPU: its GPU is not used"
        self._end = end
        self._watched = Watched(settings, "worker", WORKER_SERVICE)
        self._recorder = Recorder(version, settings.metrics_buckets_ms, self._watched.spans, self._device)
        self._consumer = Consumer(settings.amqp_url, self.instance, version, self._device, self._recorder)
        self._recorder.in_flight = lambda: self._consumer.in_flight
        self._endpoint: Worker | Child | None = None
        self._running: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failed_at = 0.0

    def __repr__(self) -> str:
        return f"<Hosted {self._consumer!r} on {self._device}>"

    async def start(self) -> None:
        """Beat, load, serve. Returns when it serves, or has failed and beats so."""
        self._watched.expose(FetchedKeys(self._settings), self._recorder)
        self._running = asyncio.create_task(self._consumer.run())
        await asyncio.to_thread(sweep)
        try:
            self._endpoint, note = await self._load()
        except Exception as error:
            self._failed_at = time.monotonic()
            self._consumer.say(FAILED, refusal(self._version, error))
            return
        patience_s = self._settings.child_patience_s
        if isinstance(self._endpoint, Worker):
            self._watching = asyncio.create_task(watch(self._endpoint, patience_s, self._consumer.blame, self._end))
        note = "; ".join(filter(None, (note, self._unused)))
        self._consumer.serve(_fed(self._endpoint, patience_s), note)
        log.info("replica ready", model=self._version.key, instance=self.instance, device=self._device, note=note)

    async def stop(self) -> None:
        """Take no more, answer what was taken, free the model."""
        await self._consumer.drain(bounds(self._version.default_deadline_ms, self._settings.drain_timeout_s).drain)
        if self._endpoint is not None:
            await self._endpoint.close(1.0)
        tasks = [task for task in (self._watching, self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._watched.close)

    def check(self) -> None:
        """Raise where another replica had better take over."""
        if self._running is None or self._running.done():
            raise RuntimeError("its consumer has ended")
        if self._failed_at and time.monotonic() - self._failed_at > FAILED_FOR_S:
            raise RuntimeError("its version was not loaded")

    async def _load(self) -> tuple[Worker | Child, str]:
        """Waits for a repository that is away."""
        while True:
            try:
                store, artifacts = await open_repository(self._settings)
                try:
                    return await load(self._version, artifacts, self._settings, self._child_changed, self._device)
                finally:
                    await store.close()
            except Unavailable as error:
                log.warning("repository away", model=self._version.key, error=error.message)
                self._consumer.say(STARTING, error.message)
                await asyncio.sleep(self._settings.poll_interval_s)

    def _child_changed(self, version: Version, state: str, reason: str) -> None:
        log.warning("child changed", model=version.key, state=state, reason=reason)


def _fed(endpoint: Worker | Child, patience_s: float) -> Endpoint:
    return ChildLink(endpoint, patience_s) if isinstance(endpoint, Child) else endpoint


class Replica:
    """What Ray Serve makes. `version` is the record in msgpack, `settings_file` where its settings are on the host of
    the reconciler; on others they come from the environment of its Ray node. Neither carries a credential."""

    async def __init__(self, version: bytes, settings_file: str) -> None:  # type: ignore[misc]
        given = assignment()
        settings = settings_from(Path(settings_file)).model_copy(update={"compute_threads": given.threads})
        logs.configure(settings)
        self._hosted = Hosted(msgspec.msgpack.decode(version, type=Version), settings, given.device)
        await self._hosted.start()

    def check_health(self) -> None:
        self._hosted.check()

    async def __del__(self) -> None:
        await self._hosted.stop()


class Assignment(NamedTuple):
    """What Ray gave this process. `device` is what torch calls it; `threads` are those of one execution."""

    device: str
    threads: int


def assignment() -> Assignment:
    import ray  # only here: whoever describes a replica need not be in a cluster

    context: Any = ray.get_runtime_context()
    cpus = context.get_assigned_resources().get("CPU", 0.0)
    return Assignment("cuda:0" if ray.get_gpu_ids() else "cpu", threads_of(cpus, len(os.sched_getaffinity(0))))


def threads_of(cpus: float, cores: int) -> int:
    """Threads that fit a reservation of `cpus` on the `cores` that a process may run on; a share of one gets one."""
    return max(1, min(int(cpus), cores))
