"""Everything in one process: repository, workers, gateway, control API. `start` and `stop` read as lists of steps."""

from __future__ import annotations

import gc

import structlog

import control.api
import gateway.rest
from core.identity import Verifier
from core.settings import Settings, authority, reached
from core.telemetry import EMBEDDED_SERVICE
from core.web import Guard, install_errors
from gateway import grpc_server
from gateway.codec import tensors
from gateway.dataplane import DataPlane
from gateway.health import Health
from gateway.http import Plant
from gateway.routes import Routes
from gateway.tracing import tracer_of
from gateway.transports.connect import transport_for
from repository.artifacts import FileArtifacts
from repository.catalog import Catalog
from repository.commands import Commands
from repository.records import Version
from repository.sqlite import SqliteStore
from repository.watch import Watch
from server import docs
from server.composition import Composition
from server.display import Display
from server.first_key import docs_of, first_key, key_and_try, tell_clients
from server.home import Home
from server.listen import bind, http_server
from server.pulse import Pulse
from server.registering import TRAINER, register
from workers.host import Endpoint, Host

log = structlog.get_logger()


class Embedded(Composition):
    """One server. `start` raises PenstockError with one sentence where it cannot."""

    commands: Commands
    url: str
    grpc: str

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.health = Health()
        self.verifier = Verifier()

    async def _start(self) -> None:
        settings = self.settings
        tensors.bound(settings.max_tensor_rank, settings.max_tensor_elements)
        self.home = Home(settings.home)
        self._stack.callback(self.home.release)
        listener = bind(settings.host, settings.http_port)
        self._stack.callback(listener.close)
        store = await SqliteStore.open(self.home.database)
        self._stack.push_async_callback(store.close)
        artifacts = FileArtifacts(self.home.artifacts)
        self.watch = Watch(store, settings.poll_interval_s)
        self.commands = Commands(store, artifacts, settings, self.watch)
        watched = self._watch("embedded", EMBEDDED_SERVICE)
        self.spans = watched.spans
        self.routes = Routes(settings, tracer_of(self.spans, settings))
        self.watch.subscribe(self._changed)
        await self.commands.sweep()
        await self.watch.refresh()
        self._background(self.watch.run())
        self.plane = DataPlane(self.verifier, self.routes, settings)
        self.plant = Plant(self.plane, settings, control.api.is_upload)
        self.host = Host(store, artifacts, self.watch, self.commands, settings, self._opened, self.routes.retire)
        await self.host.start()
        self._stack.push_async_callback(self.host.stop)
        self.rpc = await grpc_server.serve(
            self.plane, self.routes, self.watch, self.commands, self.health, self.verifier, settings
        )
        self._stack.push_async_callback(self.rpc.stop, settings.drain_timeout_s)
        self.pulse = Pulse(self.routes, lambda: self.watch.catalog, self.health)
        self._background(self.pulse.run())
        self.http = http_server(self._app(), self.plant, settings)
        await self._serve(self.http, [listener])
        self._background(self.plant.reap())
        self.routes.recorder.meters.watch(self.routes.working, lambda: len(self.plant.connections))
        watched.expose(lambda: self.verifier, self.routes.recorder.meters)
        self.url = f"http://{authority(reached(settings.host), listener.getsockname()[1])}"
        self.grpc = authority(reached(settings.host), self.rpc.port)
        self.api_key = await first_key(self.home, self.verifier, self.commands)
        self.told = tell_clients(self.home, url=self.url, grpc=self.grpc, control=self.url, api_key=self.api_key)

    async def bring_up(self, display: Display) -> None:
        """Start; on a first start with the samples; ready when every wanted version is, or has failed."""
        await self.start()
        try:
            if self.settings.samples:
                timeout = self.settings.load_timeout_s
                await register(self.home.folder, self.watch, self.commands, display.step, timeout)
            await self._settled(display)
        except BaseException:
            await self.stop()
            raise
        gc.freeze()  # what stands now stays: full collections need not look at it again
        self.health.set(True)

    def greet(self, display: Display) -> None:
        models = ", ".join(sorted({route.name for route in self.routes.table.open(TRAINER)})) or "none yet"
        display.say(f"Penstock is ready.  models: {models}")
        display.say(f"  REST     {self.url}{docs_of(self.url, self.settings)}")
        display.say(f"  gRPC     {self.grpc}")
        key_and_try(display, self.home, self.api_key, self.told, "digits" in models)

    async def _settled(self, display: Display) -> None:
        def all_settled(_: Catalog) -> bool | None:
            waiting = self.host.unsettled()
            if waiting:
                display.step(f"loading {waiting[0][0]}")
            return None if waiting else True

        await self.watch.until(all_settled, self.settings.load_timeout_s)

    async def stop(self) -> None:
        """Not ready → finish what was accepted → let go, in the reverse order of the start."""
        self.health.set(False)
        await super().stop()

    def _changed(self, catalog: Catalog) -> None:
        self.verifier.replace(catalog.credentials())
        self.routes.refresh(catalog)

    async def _opened(self, version: Version, endpoint: Endpoint) -> None:
        await self.routes.open(version, transport_for(endpoint, self.settings, self.spans))

    def _app(self) -> Guard:
        settings = self.settings
        public = gateway.rest.PUBLIC | (docs.PATHS if settings.on_loopback else frozenset())
        app = docs.Application(SUMMARY, public)
        install_errors(app)
        lifecycle = gateway.rest.router(self.plane, self.routes, self.watch, self.commands, self.health, settings)
        app.include_router(lifecycle)
        app.include_router(control.api.router(self.commands, self.watch, settings, self.pulse.look))
        limits = settings.max_control_bytes, settings.max_json_depth
        return Guard(app, self.verifier, public, *limits, gateway.rest.may_compress)


SUMMARY = "V2 inference protocol under /v2, the control API under /api/v1"
