"""The process of `penstock workers`: a driver in a Ray cluster, one of which reconciles while the others wait."""

from __future__ import annotations

import structlog

from core.errors import Unavailable
from core.settings import Settings
from core.telemetry import DRIVER_SERVICE
from repository.commands import Commands
from repository.lease import Tenure
from repository.opening import open_repository
from repository.watch import Watch
from server.composition import Composition
from server.keys import Keys
from server.stopping import stop_signal
from workers.lookout import Lookout
from workers.reconciler import Reconciler
from workers.serving import Serving
from workers.settings_file import write_settings

log = structlog.get_logger(__name__)

LEASE = "workers"
LEASE_S = 5.0
"""After the death of the process that reconciles another one takes over within this."""
SETTINGS_FILE = "replica.json"


class Workers(Composition):
    """`start` raises PenstockError with one sentence where it cannot."""

    async def _start(self) -> None:
        settings = self.settings
        if not settings.amqp_url:
            raise Unavailable("workers by themselves need a broker: set PENSTOCK_AMQP_URL")
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = settings.home.absolute() / SETTINGS_FILE
        write_settings(settings, file)
        serving = Serving(settings, str(file))
        serving.connect()
        self._stack.push_async_callback(serving.close)
        store, artifacts = await open_repository(settings)
        self._stack.push_async_callback(store.close)
        watch = Watch(store, settings.poll_interval_s)
        keys = Keys(watch)
        commands = Commands(store, artifacts, settings, watch)
        lookout = Lookout(settings.amqp_url, self._heard, watch.look)
        watch.announce = lookout.announce
        self._tenure = Tenure(store, LEASE, LEASE_S)
        self._stack.push_async_callback(self._resign)
        self.reconciler = Reconciler(store, watch, commands, serving, lookout, settings, lambda: self._tenure.held)
        self._background(watch.run())
        self._background(lookout.run())
        self._stack.push_async_callback(lookout.close)
        self._stack.push_async_callback(self.reconciler.close)
        self._background(self._reign())
        self._background(self.reconciler.run())
        self._watch("workers", DRIVER_SERVICE).expose(lambda: keys, self.reconciler)

    def _heard(self) -> None:
        self.reconciler.poke()

    async def _reign(self) -> None:
        """Wait for the lease, keep it, and again."""
        while True:
            await self._tenure.wait()
            log.info("reconciling")
            self.reconciler.poke()
            await self._tenure.keep()
            log.warning("no longer reconciling")

    async def _resign(self) -> None:
        try:
            await self._tenure.release()
        except Unavailable as error:
            log.warning("lease not released", error=error.message)


async def run(settings: Settings) -> None:
    """Until SIGINT or SIGTERM; what runs on Ray goes on running. Raises Unavailable where Ray was lost meanwhile."""
    workers = Workers(settings)
    await workers.start()
    stop = stop_signal()  # after Ray has set its own
    await stop.wait()
    await workers.stop()
