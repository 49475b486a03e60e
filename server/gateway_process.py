"""One gateway process: REST and gRPC in front of a broker; models and state in the repository, workers elsewhere.

python -m server.gateway_process HTTP_FD LIFELINE_FD    (as `penstock gateway --processes N` runs each of its own)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import socket
import sys
import time
from collections.abc import Callable

import structlog
import typer
import uvloop

import core.settings
import gateway.rest
from core import logs
from core.beats import GatewayBeat, boot_id
from core.errors import Draining, PenstockError, Unavailable
from core.settings import Settings, authority, reached
from core.telemetry import GATEWAY_SERVICE
from core.topology import new_instance
from core.web import Guard, install_errors
from gateway import grpc_server
from gateway.codec import tensors
from gateway.dataplane import DataPlane
from gateway.following import Following
from gateway.health import Health
from gateway.http import Plant
from gateway.hub import Hub
from gateway.routes import Routes
from gateway.snapshot import Snapshot
from gateway.tracing import tracer_of
from repository.catalog import Catalog
from repository.commands import Commands
from repository.opening import open_repository
from repository.watch import Watch
from server import docs, outlets
from server.composition import Composition
from server.handshake import by_gateways
from server.home import made
from server.keys import Keys
from server.listen import bind, http_server
from server.stopping import follow, stop_signal, tick

FIRST_LOOK_S = 2.0
"""How long a start waits for a repository that does not answer, before it takes the snapshot."""
LOOK_S = 0.25
PATIENCE_S = 10.0
"""A model whose replicas are not heard keeps a starting gateway from being ready for no longer than this."""
LAST_WORDS_S = 1.0
"""For those who had just connected when nothing more was accepted."""
CLOSING_S = 4.0
"""Kept of a stop's time for that, and for letting go of everything."""
SUMMARY = "V2 inference protocol under /v2"

log = structlog.get_logger(__name__)


class Gateway(Composition):
    """One gateway process. `listener`: an inherited socket, shared with the other processes of this host; without
    one it binds its own."""

    url: str
    grpc: str

    def __init__(self, settings: Settings, listener: socket.socket | None = None) -> None:
        super().__init__(settings)
        self.health = Health()
        self.instance = new_instance("gateway")
        self._listener = listener
        self._draining = False
        self._refusing = False
        self._ends = math.inf
        """When it must have stopped, in monotonic seconds: known from the moment that it is to."""

    async def _start(self) -> None:
        settings = self.settings
        if not settings.amqp_url:
            raise Unavailable("a gateway by itself needs a broker: set PENSTOCK_AMQP_URL")
        tensors.bound(settings.max_tensor_rank, settings.max_tensor_elements)
        made(settings.home)
        shared = self._listener is not None
        if not shared:
            grpc_server.check_port(settings.host, settings.grpc_port)
        listener = self._listener or bind(settings.host, settings.http_port)
        self._stack.callback(listener.close)
        store, artifacts = await open_repository(settings)
        self._stack.push_async_callback(store.close)
        self.watch = Watch(store, settings.poll_interval_s)
        self.commands = Commands(store, artifacts, settings, self.watch)
        watched = self._watch("gateway", GATEWAY_SERVICE)
        self.routes = Routes(settings, tracer_of(watched.spans, settings))
        self.hub = Hub(settings.amqp_url, self.instance, self._beat, self.watch.look, settings)
        self.verifier = Keys(self.watch)
        self.watch.announce = lambda: self._spawn(self.hub.announce())
        by_gateways(self.commands, self.hub.fleet)
        self.following = Following(self.routes, self.hub.transport, self._serves)
        self.hub.listen(self.following.beats)
        self.snapshot = Snapshot(settings.home / "snapshot", settings.snapshot_max_age_s)
        await self._first_catalog()
        self.watch.subscribe(self._changed)
        self._background(self.watch.run())
        self._background(self.hub.run())
        self._stack.push_async_callback(self._leave_broker)
        self._stack.push_async_callback(self._close_routes)
        self.plane = DataPlane(self.verifier, self.routes, settings)
        self.plant = Plant(self.plane, settings, lambda method, path: False)
        self._background(self._attend())
        await self._until_settled()
        self.rpc = await grpc_server.serve(
            self.plane, self.routes, self.watch, self.commands, self.health, self.verifier, settings, shared
        )
        self._stack.push_async_callback(self._stop_rpc)
        self.http = http_server(self._app(), self.plant, settings)
        await self._serve(self.http, [listener])
        self._background(self.plant.reap())
        self.routes.recorder.meters.watch(self.routes.working, lambda: len(self.plant.connections))
        watched.expose(lambda: self.verifier, self.routes.recorder.meters)
        self.url = f"http://{authority(reached(settings.host), listener.getsockname()[1])}"
        self.grpc = authority(reached(settings.host), self.rpc.port)

    async def drain(self, alone: bool) -> None:
        """Not ready; from now on every answer is its connection's last.

        `alone`: others of this host go on with the same socket and port, so nothing new is taken from here on. Else
        whoever comes is served for the time that an idle connection is kept, so that balancers see the readiness go
        and nobody is left in the backlog; then refused, while what was accepted is finished.

        All of it, and `stop`, ends in `stop_timeout_s`: what is not answered shortly before is cut off.
        """
        settings = self.settings
        self._ends = time.monotonic() + settings.stop_timeout_s
        self._draining = True
        self.health.set(False)
        self.plant.drain()
        patience = min(settings.keep_alive_s, settings.stop_timeout_s / 2)
        if alone:
            self.http.stop_accepting()
            leaving = asyncio.ensure_future(self._stop_rpc())
            await self._until_left(patience)
        else:
            await self._until_unasked(patience)
            leaving = asyncio.ensure_future(self._stop_rpc())  # told to go, not refused
            await asyncio.sleep(0)
            self._refusing = True
            self.following.beats()
        await self._until_answered()
        self._cut_off()
        await leaving
        self.http.stop_accepting()
        await self._until_left(LAST_WORDS_S)
        self.http.config.timeout_graceful_shutdown = max(1, round(self._left(settings.drain_timeout_s, CLOSING_S / 2)))

    def _left(self, most: float, kept: float = 0.0) -> float:
        """`most` seconds, or what is left of the stop's but for `kept`, if that is less."""
        return max(0.0, min(most, self._ends - kept - time.monotonic()))

    async def _until_unasked(self, patience_s: float) -> None:
        """For that time, so that whoever asks now and then sees the readiness go; less where nobody has asked for as
        long."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < min(deadline, self._last_asked() + patience_s):  # noqa: ASYNC110 - by others
            await asyncio.sleep(LOOK_S / 5)

    def _last_asked(self) -> float:
        """In monotonic seconds: now, while an HTTP connection is open; else when the last one went, or the last call
        came."""
        return time.monotonic() if self.plant.connections else max(self.plant.left_at, self.rpc.asked_at)

    async def _until_left(self, patience_s: float) -> None:
        """Until every client has had its last answer; idle ones leave in `keep_alive_s` at the latest."""
        deadline = time.monotonic() + patience_s
        while self.plant.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(LOOK_S / 5)

    async def _until_answered(self) -> None:
        deadline = time.monotonic() + self._left(self.settings.drain_timeout_s, CLOSING_S)
        while self.routes.pending and time.monotonic() < deadline:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(LOOK_S / 25)

    def _cut_off(self) -> None:
        """Who has no answer by now gets one that says why."""
        if left := self.routes.cut_off(Draining("the server stopped before this request was answered")):
            log.warning("requests cut off", requests=left)

    async def _stop_rpc(self) -> None:
        """Calls have a moment more than requests: those that are cut off are told why."""
        await self.rpc.stop(self._left(self.settings.drain_timeout_s, CLOSING_S) + LAST_WORDS_S)

    async def _close_routes(self) -> None:
        """After a drain all is answered, and nobody left to hear what a replica still says."""
        await self.routes.close(None if math.isinf(self._ends) else LOOK_S)

    async def _leave_broker(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._left(self.settings.drain_timeout_s) + LOOK_S):
                await self.hub.close()

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
        self.routes.refresh(catalog)
        self.following.changed(catalog)
        self._spawn(self._beat_soon())

    async def _beat_soon(self) -> None:
        """After what `following` has just begun: others wait to hear that this gateway came along."""
        self.hub.beat()

    def _serves(self, model: str, version: int) -> bool:
        if self._refusing:
            return False
        return self.hub.link.usable and bool(self.hub.fleet.ready(model, version, time.monotonic_ns()))

    def _beat(self) -> GatewayBeat:
        now = time.monotonic_ns()
        return GatewayBeat(
            sender=self.instance,
            boot=boot_id(),
            sent=now,
            host=socket.gethostname(),
            pid=os.getpid(),
            revision=self.watch.followed,
            ready=self.health.ready,
            open=self.routes.shares(now),
        )

    async def _until_settled(self) -> None:
        """Take no connection that another gateway could serve better; not for ever."""
        settled = asyncio.Event()
        self.health.listen(lambda ready: settled.set())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await settled.wait()

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


# --- as a process of several -------------------------------------------------------------------------------------


async def serve_alone(settings: Settings) -> None:
    """The only gateway process here, until SIGINT or SIGTERM. Raises PenstockError where it cannot start, or a part of
    it failed."""
    stop, gateway = stop_signal(), Gateway(settings)
    await gateway.start()
    typer.echo(f"Penstock's gateway is ready.\n  REST     {gateway.url}\n  gRPC     {gateway.grpc}")
    await _serve(gateway, stop, lambda: False)


async def _one_of_several(settings: Settings, http_fd: int, lifeline_fd: int) -> None:
    """Serve on the inherited socket until a signal; or, like all its siblings, when the lifeline is closed."""
    stop, everybody = stop_signal(), asyncio.Event()
    lifeline = socket.socket(fileno=lifeline_fd)
    follow(lifeline, everybody, stop)
    gateway = Gateway(settings, socket.socket(fileno=http_fd))
    await gateway.start()
    ticking = asyncio.create_task(tick(lifeline))
    await _serve(gateway, stop, lambda: not everybody.is_set())
    ticking.cancel()


async def _serve(gateway: Gateway, stop: asyncio.Event, alone: Callable[[], bool]) -> None:
    try:
        gc.freeze()
        await stop.wait()
        await gateway.drain(alone())
    finally:
        await gateway.stop()


def main(http_fd: int, lifeline_fd: int) -> int:
    outlets.secure()
    try:
        chosen = core.settings.load()
        logs.configure(chosen)
        uvloop.run(_one_of_several(chosen, http_fd, lifeline_fd))
    except PenstockError as error:
        structlog.get_logger().error("gateway process ends", error=error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
