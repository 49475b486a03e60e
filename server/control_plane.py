"""The process of `penstock control`: /api/v1 over the repository; beats tell it who is alive, writes are announced.

Nobody waits for it: gateways and workers read the repository themselves and go on while it is down. It starts while
the repository is away, says that it is not ready, and refuses what needs it within the time of one call.
"""

from __future__ import annotations

import asyncio
import time

import typer

import control.api
import control.health
from control.status import Look, Seen, nobody
from core.errors import Unavailable
from core.settings import Settings, authority, reached
from core.telemetry import CONTROL_SERVICE
from core.web import Guard, install_errors
from gateway.dataplane import DataPlane
from gateway.http import Plant
from gateway.routes import Routes
from repository.commands import Commands
from repository.opening import open_repository
from repository.watch import Watch
from server import docs
from server.composition import Composition
from server.handshake import by_gateways
from server.home import made
from server.keys import Keys
from server.listen import bind, http_server
from server.stopping import stop_signal
from workers.lookout import Lookout

SUMMARY = "the control API under /api/v1"


class ControlPlane(Composition):
    """`start` raises PenstockError with one sentence where it cannot; a repository that is away is no such reason."""

    url: str
    commands: Commands

    async def _start(self) -> None:
        settings = self.settings
        made(settings.home)
        listener = bind(settings.host, settings.control_port, "PENSTOCK_CONTROL_PORT")
        self._stack.callback(listener.close)
        store, artifacts = await open_repository(settings)
        self._stack.push_async_callback(store.close)
        self.watch = Watch(store, settings.poll_interval_s)
        self.commands = Commands(store, artifacts, settings, self.watch)
        self.verifier = Keys(self.watch)
        look = self._listen() if settings.amqp_url else nobody
        self._background(self.watch.run())
        self._background(self._sweep())
        plane = DataPlane(self.verifier, Routes(settings), settings)  # nothing is open here
        plant = Plant(plane, settings, control.api.is_upload)
        await self._serve(http_server(self._app(look), plant, settings), [listener])
        self._background(plant.reap())
        self._watch("control", CONTROL_SERVICE).expose(lambda: self.verifier)
        self.url = f"http://{authority(reached(settings.host), listener.getsockname()[1])}"

    def _listen(self) -> Look:
        """Hear beats and events from now on; what was heard lately."""
        lookout = Lookout(self.settings.amqp_url, lambda: None, self.watch.look, "control")
        self.watch.announce = lookout.announce
        by_gateways(self.commands, lookout.fleet)
        self._stack.push_async_callback(lookout.close)
        self._background(lookout.run())

        def look() -> Seen:
            now = time.monotonic_ns()
            return Seen(lookout.fleet.replicas(now), lookout.fleet.gateways(now), lookout.hearing(now))

        return look

    async def _sweep(self) -> None:
        """Once the repository answers, clear away what crashes left."""
        while True:
            try:
                await self.commands.sweep()
            except Unavailable:
                await asyncio.sleep(self.settings.poll_interval_s)
            else:
                return

    def _app(self, look: Look) -> Guard:
        settings = self.settings
        public = control.health.PUBLIC | (docs.PATHS if settings.on_loopback else frozenset())
        app = docs.Application(SUMMARY, public)
        install_errors(app)
        app.include_router(control.health.router(lambda: self.watch.confirmed), tags=["server"])
        app.include_router(control.api.router(self.commands, self.watch, settings, look))
        return Guard(app, self.verifier, public, settings.max_control_bytes, settings.max_json_depth)


async def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises PenstockError where it cannot start."""
    stop, plane = stop_signal(), ControlPlane(settings)
    await plane.start()
    typer.echo("Penstock's control plane is ready.")
    typer.echo(f"  control  {plane.url}      docs: {plane.url}/docs")
    await stop.wait()
    await plane.stop()
