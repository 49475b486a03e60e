"""Makes Ray Serve run what the repository wants: looks, plans (`workers/reconcile.py`), begins what was planned.

Nothing that matters is remembered here: which versions run is asked of Serve, how they stand of beats and records. So
a new process goes on where the last one ended, and replicas do not notice. What this process alone knows (which loads
failed, since when something waits) is only what it would find out again.

Where the repository, the broker or Ray is away, what runs goes on running, and nothing is begun. Ray that stays away
ends this: its library does not find a head that was started anew. What was begun ends where this process is no longer
the one that reconciles (`workers/mandate.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import msgspec
import structlog
from msgspec.structs import replace
from prometheus_client.core import Metric

from core import telemetry
from core.beats import ReplicaBeat
from core.errors import PenstockError, Unavailable
from core.meters import gauges
from core.settings import Settings
from repository.catalog import Catalog, Place
from repository.commands import Commands
from repository.records import LOADING, READY, UNAVAILABLE, UNLOADING, Signature, Version
from repository.store import Store
from repository.watch import Watch
from workers import placement, reconcile
from workers.draining import Bounds, bounds
from workers.lookout import Lookout
from workers.mandate import Lapsed, Mandate, Serves
from workers.placement import Cluster, Spec, spec_of
from workers.plan import UNLOADED, Say, Unload
from workers.reconcile import Action, Actual, Application, Deploy, Fail, Open, listed
from workers.scale import Scaler, load_of
from workers.states import States

log = structlog.get_logger(__name__)

LOOK_S = 0.5
STEP_S = 0.1
SERVE_LOOK_S = 0.25
SHORT_AFTER_S = 3.0
"""A replica that has waited for a node this long does not just wait its turn."""
STARTS_S = 60.0
"""For Ray to start a replica's process, and that to be heard: beyond the time to load."""
LOST_AFTER_S = 20.0
"""Ray that has been away for so long is given up: this process has to join it anew."""
APPEARS_S = 5.0
"""Within which Serve shows an application that it was told to have."""


class Reconciler:
    """`may_act`: whether this process is the one that reconciles."""

    def __init__(
        self,
        store: Store,
        watch: Watch,
        commands: Commands,
        serving: Serves,
        lookout: Lookout,
        settings: Settings,
        may_act: Callable[[], bool],
    ) -> None:
        self._watch = watch
        self._serving = serving
        self._lookout = lookout
        self._settings = settings
        self._states = States(store, watch)
        self._mandate = Mandate(self._states, commands, serving, lookout, may_act)
        self._scaler = Scaler()
        self._busy: dict[Place, str] = {}
        self._failed: dict[Place, int] = {}
        self._waiting_since: dict[Place, float] = {}
        self._unheard_since: dict[Place, float] = {}
        self._known: dict[Place, Version] = {}
        self._poked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._away_since = math.inf
        self._deployed: dict[Place, int] = {}

    def __repr__(self) -> str:
        return f"<Reconciler, busy with {', '.join(f'{m}/{v}' for m, v in self._busy) or 'nothing'}>"

    def collect(self) -> Iterable[Metric]:
        """For whoever scrapes."""
        counts = {(model, str(version)): count for (model, version), count in dict(self._deployed).items()}
        yield gauges(telemetry.DEPLOYED, counts)

    def poke(self) -> None:
        """Something was heard or written: look at once."""
        self._poked.set()

    async def run(self) -> None:
        """For ever. Raises Unavailable where Ray stays away."""
        self._watch.subscribe(lambda _: self.poke())
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._poked.wait()
            self._poked.clear()
            if self._mandate.held() and self._watch.confirmed:
                await self._look_again()
            await asyncio.sleep(STEP_S)

    async def close(self) -> None:
        """Leave everything as it is: whoever comes next goes on from there."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- looking --------------------------------------------------------------------------------------------------

    async def _look_again(self) -> None:
        """A look that fails is told of and ends nothing: the next one may find what it failed on gone."""
        try:
            await self._look()
        except Unavailable:
            raise
        except Exception:
            log.exception("looking failed")
            await asyncio.sleep(self._settings.poll_interval_s)

    async def _look(self) -> None:
        try:
            applications, cluster = await self._serving.applications(), await self._serving.cluster()
        except Unavailable:
            self._away_since = min(self._away_since, time.monotonic())
            if time.monotonic() - self._away_since >= LOST_AFTER_S:
                raise Unavailable(f"Ray has been away for {LOST_AFTER_S:g} s, it has to be joined anew") from None
            return
        self._away_since = math.inf
        self._deployed = {place: each.spec.replicas for place, each in applications.items() if not each.leaving}
        catalog = self._states.overlaid(self._watch.catalog)
        self._known |= {(version.model, version.version): version for version in catalog.all_versions()}
        actual = self._actual(applications, cluster)
        loads = self._settings.concurrent_loads * max(1, len(cluster.nodes))
        specs = self._specs(catalog, actual)
        patience_s = self._settings.load_timeout_s + STARTS_S
        for action in reconcile.plan(catalog, specs, actual, self._busy, self._failed, loads, patience_s):
            self._begin(action)

    def _actual(self, applications: dict[Place, Application], cluster: Cluster) -> Actual:
        now = time.monotonic_ns()
        replicas: dict[Place, list[ReplicaBeat]] = {}
        for beat in self._lookout.fleet.replicas(now):
            replicas.setdefault((beat.model, beat.version), []).append(beat)
        gateways, hearing = self._lookout.fleet.gateways(now), self._lookout.hearing(now)
        actual = Actual(applications, replicas, gateways, self._short(applications, cluster), hearing=hearing)
        return actual._replace(unheard=self._unheard(actual))

    def _unheard(self, actual: Actual) -> dict[Place, float]:
        """Applications of which nothing is heard → for how many seconds."""
        now = time.monotonic()
        self._unheard_since = reconcile.unheard(self._unheard_since, actual, now)
        return {place: now - since for place, since in self._unheard_since.items()}

    def _short(self, applications: dict[Place, Application], cluster: Cluster) -> dict[Place, str]:
        """Applications whose replicas have waited for a node for long → what is missing."""
        now = time.monotonic()
        waiting = reconcile.waiting(applications, cluster)
        self._waiting_since = {place: self._waiting_since.get(place, now) for place in waiting}
        return {
            place: placement.shortage(applications[place].spec, cluster.nodes)
            for place, since in self._waiting_since.items()
            if now - since >= SHORT_AFTER_S
        }

    def _specs(self, catalog: Catalog, actual: Actual) -> dict[Place, Spec]:
        specs = {}
        for version in catalog.all_versions():
            place = (version.model, version.version)
            deployment = catalog.deployment(version.model)
            application = actual.applications.get(place)
            running = application.spec.replicas if application is not None else 0
            if actual.hearing:
                load = load_of(place, actual.replicas.get(place, ()), actual.gateways)
                replicas = self._scaler.replicas(place, deployment, running, load, time.monotonic())
            else:  # silence is not idleness
                replicas = min(max(running, deployment.replicas), deployment.max_replicas)
            specs[place] = spec_of(deployment, replicas)
        self._scaler.forget(specs)
        return specs

    # --- doing ----------------------------------------------------------------------------------------------------

    def _begin(self, action: Action) -> None:
        if isinstance(action, Say):
            place = (action.version.model, action.version.version)
            phase = UNLOADING if action.reason == UNLOADED else READY if action.state == READY else LOADING
            self._spawn(place, phase, self._say(action))
        elif isinstance(action, Unload):
            self._spawn(action.place, UNLOADING, self._let_go(action.place))
        elif isinstance(action, Deploy):
            place = (action.version.model, action.version.version)
            opened = not action.fresh and self._states.overlaid(self._watch.catalog).ready(*place)
            self._spawn(place, READY if opened else LOADING, self._deploy(action))
        elif isinstance(action, Open):
            self._spawn((action.version.model, action.version.version), LOADING, self._open(action))
        else:
            self._spawn((action.version.model, action.version.version), UNLOADING, self._fail(action))

    def _spawn(self, place: Place, phase: str, work: Awaitable[None]) -> None:
        self._busy[place] = phase

        async def run() -> None:
            try:
                await work
            except Lapsed:
                log.info("left to another process", model=f"{place[0]}/{place[1]}")
            except Unavailable as error:
                log.warning("not done, tried again", model=f"{place[0]}/{place[1]}", error=error.message)
                await asyncio.sleep(self._settings.poll_interval_s)
            except Exception:
                log.exception("reconciling failed", model=f"{place[0]}/{place[1]}")
                await asyncio.sleep(self._settings.poll_interval_s)
            finally:
                del self._busy[place]
                self.poke()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say(self, action: Say) -> None:
        if (action.state, action.reason) == (UNAVAILABLE, UNLOADED):
            await self._mandate.delete_queues((action.version.model, action.version.version))
        await self._mandate.say(action.version, action.state, action.reason)

    async def _deploy(self, action: Deploy) -> None:
        version, spec = action.version, action.spec
        if action.fresh:
            await self._mandate.say(version, LOADING)
        await self._mandate.deploy(version, spec)
        log.info("deployed", model=version.key, **spec._asdict())
        place = (version.model, version.version)
        await self._until(lambda applications: place in applications and applications[place].spec == spec, APPEARS_S)

    async def _open(self, action: Open) -> None:
        version, beat = action.version, action.beat
        try:
            found = msgspec.msgpack.decode(beat.signature, type=Signature)
            if (found, beat.max_batch) != (version.signature, version.max_batch):
                version = await self._mandate.complete(version, found, beat.max_batch)
        except Unavailable:
            raise
        except (PenstockError, msgspec.DecodeError) as error:
            reason = error.message if isinstance(error, PenstockError) else "its replica told no signature"
            await self._fail(Fail(version, beat.attempt, reason))
            return
        await self._mandate.say(version, READY, beat.note)
        self._failed.pop((version.model, version.version), None)
        log.info("version ready", model=version.key, note=beat.note)

    async def _fail(self, action: Fail) -> None:
        """Who has asked for another attempt meanwhile waits on: this says nothing of that one, which comes next."""
        version = replace(action.version, attempt=action.attempt)
        place = (version.model, version.version)
        asked_again = action.version.attempt != action.attempt
        if not asked_again:
            self._failed[place] = action.attempt
        await self._mandate.say(version, UNAVAILABLE, action.reason)
        log.warning("version not loaded", model=version.key, reason=action.reason)
        await self._remove(place)
        self._failed[place] = action.attempt

    async def _let_go(self, place: Place) -> None:
        """Routes first, then the queue, then the replicas: each step waits for the one before."""
        version = self._version(place)
        if version is not None:
            await self._mandate.say(version, UNLOADING)
        await self._drained(place)
        await self._remove(place)
        if version is not None:
            await self._mandate.say(version, UNAVAILABLE, UNLOADED, best_effort=True)
        self._known.pop(place, None)
        log.info("version unloaded", model=f"{place[0]}/{place[1]}")

    async def _drained(self, place: Place) -> None:
        """Until no gateway can send, nothing is queued and nothing runs; not for ever, since gateways may hang, but as
        long as the broker is away."""
        heard = 0.0
        patience = 2 * self._bounds(place).drain
        while heard < patience:
            self._mandate.check()
            if await self._quiet(place):
                return
            await asyncio.sleep(STEP_S)
            heard += STEP_S * self._lookout.hearing(time.monotonic_ns())
        log.warning("unloaded with work left", model=f"{place[0]}/{place[1]}")

    async def _quiet(self, place: Place) -> bool:
        now = time.monotonic_ns()
        fleet = self._lookout.fleet
        if not self._lookout.hearing(now) or any(place in listed(gateway) for gateway in fleet.gateways(now)):
            return False
        if any(beat.in_flight for beat in fleet.of(*place, now)):
            return False
        return await self._lookout.waiting(*place) == 0

    async def _remove(self, place: Place) -> None:
        await self._mandate.delete(place)
        await self._until(lambda applications: place not in applications, self._bounds(place).gone)
        await self._mandate.delete_queues(place)

    def _bounds(self, place: Place) -> Bounds:
        """For how long its replicas may take to end."""
        version = self._version(place)
        deadline_ms = self._settings.default_deadline_ms if version is None else version.default_deadline_ms
        return bounds(deadline_ms, self._settings.drain_timeout_s)

    def _version(self, place: Place) -> Version | None:
        """Its record, though it was deleted meanwhile."""
        return self._watch.catalog.version(*place) or self._known.get(place)

    async def _until(self, so: Callable[[dict[Place, Application]], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._mandate.check()
            if so(await self._serving.applications()):
                return
            await asyncio.sleep(SERVE_LOOK_S)
