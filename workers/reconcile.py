"""What has to be begun so that Ray Serve runs what the repository wants. Pure.

One version, from here to there and back (states as the repository tells them, `workers/reconciler.py` does the steps):

    wanted ─► LOADING: an application ─► a replica beats READY ─► READY: gateways open it
                 └── it beats FAILED, its process dies again and again, or no replica of it is ever heard
                         ─► UNAVAILABLE and why; taken away
    no longer wanted, and every gateway serves what takes its place ─► UNLOADING: gateways close it ─► its queue is
    empty ─► replicas drain ─► its queues are deleted ─► UNAVAILABLE "unloaded"

Which versions are wanted is the same rule as in one process (`repository/wanted.py`), and so is what follows from it
(`workers/plan.py`): only that a version here is held by an application, and heard by its beats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.beats import FAILED, READY, GatewayBeat, ReplicaBeat
from repository.catalog import Catalog, Place
from repository.records import LOADING, UNAVAILABLE, UNLOADING, Version, VersionState
from repository.wanted import wanted
from workers import plan as one_process
from workers.placement import Cluster, Spec, pending
from workers.plan import Say, Unload

CRASHED = "its process died each time it was started, before the model was ready"
NEVER_HEARD = (
    "none of its replicas was heard at the broker for {} s, though a node has room: do they start, can they reach it?"
)
RESTARTING = "none of its replicas is heard; they are being started again"


class Application(NamedTuple):
    """One of Ray Serve's. `failed`: its replicas end before they are ready, again and again. `leaving`: it is being
    deleted. `settled`: all the replicas that it is to have run, and as it says."""

    spec: Spec
    failed: bool = False
    leaving: bool = False
    settled: bool = False


class Actual(NamedTuple):
    """`short`: places of which replicas have waited for a node for long, and what is missing. `unheard`: seconds for
    which no replica of a place was heard that was not short. `hearing`: whether beats would be heard; if not, silence
    says nothing."""

    applications: Mapping[Place, Application]
    replicas: Mapping[Place, Sequence[ReplicaBeat]]
    gateways: Sequence[GatewayBeat] = ()
    short: Mapping[Place, str] = {}
    unheard: Mapping[Place, float] = {}
    hearing: bool = True


class Deploy(NamedTuple):
    """Have it so. `fresh`: there is nothing of it yet."""

    version: Version
    spec: Spec
    fresh: bool


class Open(NamedTuple):
    """A replica is ready: complete the record by what its load has found, say READY."""

    version: Version
    beat: ReplicaBeat


class Fail(NamedTuple):
    """It cannot be served: say so of that attempt, take it away, remember the attempt."""

    version: Version
    attempt: int
    reason: str


Action = Deploy | Open | Fail | Say | Unload


def plan(
    catalog: Catalog,
    specs: Mapping[Place, Spec],
    actual: Actual,
    busy: Mapping[Place, str],
    failed: Mapping[Place, int],
    loads: int,
    patience_s: float,
) -> list[Action]:
    """What to begin now, one action a version.

    `busy`: versions with which something was begun, as LOADING or UNLOADING. `failed`: the attempt at which a version
    could not be served. `loads`: versions that may be loaded at one time. `patience_s`: for which a version that loads
    may have no replica that is heard.
    """
    held = phases(catalog, actual, busy)
    want = wanted(one_process.as_held(catalog, held))
    room = loads - sum(phase == LOADING and place not in actual.short for place, phase in held.items())
    never_opened = {place for place, phase in held.items() if phase == LOADING} - want - busy.keys()
    actions: list[Action] = [Unload(place) for place in sorted(never_opened)]
    for action in one_process.plan(catalog, held, failed):
        if (action.place if isinstance(action, Unload) else _place(action.version)) in busy:
            continue
        if isinstance(action, Say):
            actions.append(action)
        elif isinstance(action, Unload):
            if switched(action.place, want, held, actual):
                actions.append(action)
        elif room > 0:
            room -= 1
            actions.append(Deploy(action.version, specs[_place(action.version)], fresh=True))
    taken = {_of(action) for action in actions} | busy.keys()
    for place in sorted(held.keys() & want - taken):
        version = catalog.version(*place)
        if version is not None and not actual.applications[place].leaving:
            beats = [beat for beat in actual.replicas.get(place, ()) if not _over(beat, version, failed)]
            step = _further(version, held[place], specs[place], actual, beats, catalog.states.get(place), patience_s)
            actions += [] if step is None else [step]
    return actions


def phases(catalog: Catalog, actual: Actual, busy: Mapping[Place, str]) -> dict[Place, str]:
    """LOADING, READY or UNLOADING of every version that there is something of.

    What the records called READY, or began to unload, was opened once: a restart of this process finds it so.
    """
    opened = {READY, UNLOADING}
    found = {
        place: UNLOADING if application.leaving else READY if catalog.state(*place) in opened else LOADING
        for place, application in actual.applications.items()
    }
    return found | dict(busy)


def switched(place: Place, want: set[Place], held: Mapping[Place, str], actual: Actual) -> bool:
    """Whether every live gateway serves what takes this version's place: the model's wanted ones that are ready."""
    if not actual.hearing:
        return False
    successors = {other for other in want if other[0] == place[0] and held.get(other) == READY}
    return all(successors <= listed(gateway) for gateway in actual.gateways)


def unheard(since: Mapping[Place, float], actual: Actual, now: float) -> dict[Place, float]:
    """Since when (monotonic seconds) no replica of each application has been heard. It counts anew for what was heard
    or found no node, and for all while nobody would be heard."""
    silent = (
        actual.applications.keys() - actual.short.keys() - {place for place, beats in actual.replicas.items() if beats}
    )
    return {place: since.get(place, now) for place in silent} if actual.hearing else {}


def waiting(applications: Mapping[Place, Application], cluster: Cluster) -> set[Place]:
    """Those of which a replica waits for a node. Ray tells of a waiting one by its shape alone: where all replicas of
    an application run, it is another's."""
    return {place for place, of in applications.items() if not of.settled and pending(of.spec, cluster)}


def listed(gateway: GatewayBeat) -> set[Place]:
    """What a gateway may still send a batch of."""
    return {(share.model, share.version) for share in gateway.open}


def _over(beat: ReplicaBeat, version: Version, failed: Mapping[Place, int]) -> bool:
    """Whether a replica speaks of an attempt that failed and was taken away: it is heard for a moment yet, while the
    next one loads. Else a replica of an earlier attempt speaks for what is there: nobody starts anew what loads or
    serves because it is asked for once more."""
    return beat.attempt != version.attempt and beat.attempt <= failed.get(_place(version), 0)


def _further(
    version: Version,
    phase: str,
    spec: Spec,
    actual: Actual,
    beats: Sequence[ReplicaBeat],
    state: VersionState | None,
    patience_s: float,
) -> Deploy | Open | Fail | Say | None:
    place = _place(version)
    application = actual.applications[place]
    ready = [beat for beat in beats if beat.state == READY]
    if ready and (phase == LOADING or state is None or state.state != READY):
        return Open(version, ready[0])
    if phase == LOADING and (failure := _failure(version, actual, beats, patience_s)) is not None:
        return failure
    if application.spec != spec:
        return Deploy(version, spec, fresh=False)
    if phase == LOADING:
        return _loading(version, actual.short.get(place, ""), state)
    reason = _standing(beats, ready, actual.short.get(place, ""))
    if actual.hearing and state is not None and state.state == READY and state.reason != reason:
        return Say(version, READY, reason)
    return None


def _failure(version: Version, actual: Actual, beats: Sequence[ReplicaBeat], patience_s: float) -> Fail | None:
    place = _place(version)
    refused = next((beat for beat in beats if beat.state == FAILED), None)
    if refused is not None:
        return Fail(version, refused.attempt, refused.reason)
    if actual.applications[place].failed:
        return Fail(version, version.attempt, CRASHED)
    if actual.hearing and actual.unheard.get(place, 0.0) > patience_s:
        return Fail(version, version.attempt, NEVER_HEARD.format(round(actual.unheard[place])))
    return None


def _loading(version: Version, short: str, state: VersionState | None) -> Say | None:
    told = (UNAVAILABLE, short) if short else (LOADING, "")
    if state is None or (state.state, state.reason) != told or state.attempt != version.attempt:
        return Say(version, *told)
    return None


def _standing(beats: Sequence[ReplicaBeat], ready: Sequence[ReplicaBeat], short: str) -> str:
    """What people should know of a version that was opened, '' if nothing."""
    if not ready:
        return next((beat.reason for beat in beats if beat.reason), RESTARTING)
    return short or ready[0].note


def _of(action: Action) -> Place:
    return action.place if isinstance(action, Unload) else _place(action.version)


def _place(version: Version) -> Place:
    return (version.model, version.version)
