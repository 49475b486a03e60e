"""One gateway process: REST and gRPC in front of a broker; models and state in the repository, workers elsewhere.

python -m server.gateway_process HTTP_FD LIFELINE_FD    (as `penstock gateway --processes N` runs each of its own)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import time
from collections.abc import Callable

import structlog
import uvloop
from gateway.hub import Hub
from repository.opening import open_repository

import core.settings
import gateway.rest
from core import logs
from core.beats import GatewayBeat, boot_id
from core.errors import PenstockError, Unavailable
from core.identity import Verifier
from core.settings import Settings
from core.topology import new_instance
from core.web import Guard, install_errors
from gateway import grpc_server
from gateway.codec import tensors
from gateway.dataplane import DataPlane
from gateway.following import Following
from gateway.health import Health
from gateway.http import Plant
from gateway.routes import Routes
from gateway.snapshot import Snapshot
from repository.catalog import Catalog
from repository.commands import Commands
from repository.watch import Watch
from server import docs, outlets
from server.composition import Composition, authority
from server.listen import bind, http_server
from server.stopping import follow, stop_signal

FIRST_LOOK_S = 2.0
"""How long a start waits for a repository that does not answer, before it takes the snapshot."""
LOOK_S = 0.25
PATIENCE_S = 10.0
"""A model whose replicas are not heard keeps a starting gateway from being ready for no longer than this."""
SUMMARY = "V2 inference protocol under /v2"


class Gateway(Composition):
    """One gateway process. `listener`: an inherited socket, shared with the other processes of this host; without
    one it binds its own."""

    url: str
    grpc: str

    def __init__(self, settings: Settings, listener: socket.socket | None = None) -> None:
        super().__init__(settings)
        self.health = Health()
        self.verifier = Verifier()
        self.instance = new_instance("gateway")
        self._listener = listener
        self._draining = False

    async def _start(self) -> None:
        settings = self.settings
        if not settings.amqp_url:
            raise Unavailable("a gateway by itself needs a broker: set PENSTOCK_AMQP_URL")
        tensors.bound(settings.max_tensor_rank, settings.max_tensor_elements)
        _folder(settings)
        shared = self._listener is not None
        listener = self._listener or bind(settings.host, settings.http_port)
        self._stack.callback(listener.close)
        store, artifacts = await open_repository(settings)
        self._stack.push_async_callback(store.close)
        self.watch = Watch(store, settings.poll_interval_s)
        self.commands = Commands(store, artifacts, settings, self.watch)
        self.routes = Routes(settings)
        self.hub = Hub(settings.amqp_url, self.instance, self._beat, self.watch.look, settings)
        self.watch.announce = lambda: self._spawn(self.hub.announce())
        self.following = Following(self.routes, self.hub.transport, self._serves)
        self.hub.listen(self.following.beats)
        self.snapshot = Snapshot(settings.home / "snapshot", settings.snapshot_max_age_s)
        await self._first_catalog()
        self.watch.subscribe(self._changed)
        self._background(self.watch.run())
        self._background(self.hub.run())
        self._stack.push_async_callback(self.hub.close)
        self._stack.push_async_callback(self.routes.close)
        self.plane = DataPlane(self.verifier, self.routes, settings)
        self.plant = Plant(self.plane, settings, lambda method, path: False)
        self.rpc = await grpc_server.serve(
            self.plane, self.routes, self.watch, self.commands, self.health, self.verifier, settings, shared
        )
        self._stack.push_async_callback(self.rpc.stop, settings.drain_timeout_s)
        await self._serve(http_server(self._app(), self.plant, settings), [listener])
        self._background(self.plant.reap())
        self._background(self._attend())
        self.url = f"http://{authority(settings.host, listener.getsockname()[1])}"
        self.grpc = authority(settings.host, self.rpc.port)

    async def drain(self) -> None:
        """Not ready; every answer says that its connection ends; until all have heard it or been idle for long.

        New connections are answered all this time: nobody may be left in the socket's backlog.
        """
        self._draining = True
        self.health.set(False)
        self.plant.drain()
        deadline = time.monotonic() + self.settings.keep_alive_s
        while self.plant.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        await self.drain()
        await super().stop()

    # --- routes and readiness

    async def _first_catalog(self) -> None:
        """What the repository says; where it does not answer, what it said last."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self.watch.refresh()
                return
        kept = await asyncio.to_thread(self.snapshot.load)
        if kept is not None:
            self.watch.adopt(kept)

    def _changed(self, catalog: Catalog) -> None:
        self.verifier.replace(catalog.credentials())
        self.routes.refresh(catalog)
        self.following.changed(catalog)

    def _serves(self, model: str, version: int) -> bool:
        return self.hub.link.usable and bool(self.hub.fleet.ready(model, version, time.monotonic_ns()))

    def _beat(self) -> GatewayBeat:
        now = time.monotonic_ns()
        return GatewayBeat(
            sender=self.instance,
            boot=boot_id(),
            sent=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            revision=self.watch.catalog.revision,
            ready=self.health.ready,
            open=self.routes.shares(now),
        )

    async def _attend(self) -> None:
        """Keep doors, readiness and the snapshot as they should be."""
        settled, begun = False, time.monotonic()
        while True:
            self.following.beats()
            patient = time.monotonic() - begun < PATIENCE_S
            settled = settled or (self.watch.catalog.revision >= 0 and not (patient and self.following.waiting()))
            if not self._draining:
                self.health.set(settled and self.hub.link.usable)
            if self.watch.confirmed and self.snapshot.due(self.watch.catalog):
                await self.snapshot.keep(self.watch.catalog)
            await asyncio.sleep(LOOK_S)

    def _app(self) -> Guard:
        settings = self.settings
        public = gateway.rest.PUBLIC | (docs.PATHS if settings.on_loopback else frozenset())
        app = docs.Application(SUMMARY, public)
        install_errors(app)
        app.include_router(
            gateway.rest.router(self.plane, self.routes, self.watch, self.commands, self.health, settings)
        )
        limits = settings.max_control_bytes, settings.max_json_depth
        return Guard(app, self.verifier, public, *limits, gateway.rest.may_compress)


def _folder(settings: Settings) -> None:
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the folder {settings.home} cannot be used: {error.strerror}") from None


# --- as a process of several -------------------------------------------------------------------------------------


async def serve(process: Gateway, stop: asyncio.Event, started: Callable[[], object]) -> None:
    """Start, say so, and serve until `stop` is set. Raises PenstockError where it cannot start."""
    await process.start()
    try:
        gc.freeze()
        started()
        await stop.wait()
    finally:
        await process.stop()


async def _one_of_several(settings: Settings, http_fd: int, lifeline_fd: int) -> None:
    """Serve on the inherited socket until a signal, or until the process that started this one is gone."""
    stop = stop_signal()
    lifeline = socket.socket(fileno=lifeline_fd)
    follow(lifeline, stop)
    await serve(Gateway(settings, socket.socket(fileno=http_fd)), stop, lambda: lifeline.send(b"."))


def main(http_fd: int, lifeline_fd: int) -> int:
    outlets.secure()
    try:
        chosen = core.settings.load()
        logs.configure(chosen)
        uvloop.run(_one_of_several(chosen, http_fd, lifeline_fd))
    except PenstockError as error:
        structlog.get_logger().error("gateway process cannot start", error=error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
