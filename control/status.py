"""How everything stands now: models, versions and replicas, who serves them and how busy they are, the gateways.

    catalog (what is asked for, what workers say)  ─┐
    beats (who is alive, and where)                ─┼─► status ─► GET /api/v1/status
    who asks (models they see; hosts to deployers) ─┘

Where beats come from is the composition's business: `Look` gives those heard lately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple, TypeVar

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from control.deployments import DeploymentView, deployment_view
from core.beats import READY, GatewayBeat, ReplicaBeat, Share
from core.identity import DEPLOY, PREDICT, Principal
from core.web import require
from repository.access import reason_for
from repository.catalog import Catalog, Place
from repository.records import LOADING, UNAVAILABLE, UNLOADING
from repository.records import READY as SERVING
from repository.wanted import wanted
from repository.watch import Watch

T = TypeVar("T", ReplicaBeat, Share)
B = TypeVar("B", ReplicaBeat, GatewayBeat)
Reader = Annotated[Principal, Depends(require(PREDICT))]
HELD = frozenset({SERVING, LOADING, UNLOADING})
DELETED = "deleted; what is left of it finishes"


class Seen(NamedTuple):
    """What was heard lately. `listening`: whether it could be: False, and an empty list says nothing."""

    replicas: list[ReplicaBeat]
    gateways: list[GatewayBeat]
    listening: bool = True


Look = Callable[[], Seen]


def nobody() -> Seen:
    """Where nobody listens to beats."""
    return Seen([], [], listening=False)


class ReplicaStatus(BaseModel):
    instance: str = Field(description="one process for its life")
    host: str
    pid: int
    device: str = Field(examples=["cuda:0"])
    state: str = Field(description="STARTING, READY, DRAINING or FAILED", examples=["READY"])
    reason: str
    in_flight: int = Field(description="batches that it has taken and not answered")
    queue_wait_ms: float = Field(description="from a batch's arrival to the model, mean of the last second")
    service_ms: float | None = Field(description="of one execution, mean of the last second; null: none ran")
    longest_ms: float | None = Field(description="the longest execution of the last second")
    rows: float | None = Field(description="of one execution, mean of the last second")
    busy: float = Field(description="share of the last second that the model ran, 0 to 1")


class VersionStatus(BaseModel):
    version: int
    aliases: list[str]
    state: str = Field(examples=["READY"])
    reason: str
    ready: int = Field(description="replicas that serve")
    waiting: int = Field(description="rows queued at the gateways")
    oldest_ms: float = Field(description="how long the oldest of them has waited")
    in_flight: int = Field(description="batches that gateways sent and have no answer to")
    demand: int = Field(description="rows asked for in the last second, refused ones included")
    where: list[ReplicaStatus] = Field(description="every replica, ready or not; to those who may deploy")


class ModelStatus(BaseModel):
    name: str
    deployment: DeploymentView
    versions: list[VersionStatus] = Field(description="those that are wanted, loaded or still running; newest first")


class GatewayStatus(BaseModel):
    instance: str
    host: str
    pid: int
    ready: bool
    revision: int = Field(description="of the repository that its routes are made of")
    open: list[str] = Field(description="versions that it sends batches to", examples=[["digits/1"]])


class Status(BaseModel):
    revision: int = Field(description="of the repository")
    repository: bool = Field(description="whether it could be read at the last look")
    listening: bool = Field(description="whether replicas and gateways can be heard; if not, none are shown")
    models: list[ModelStatus]
    gateways: list[GatewayStatus] = Field(description="to those who may deploy")


def router(watch: Watch, look: Look) -> APIRouter:
    api = APIRouter(prefix="/status")

    @api.get("", summary="How everything stands now; also while the repository is away")
    async def read_status(who: Reader) -> Status:
        return status(watch.catalog, look(), who, watch.confirmed)

    return api


# --- from catalog and beats to the view ---------------------------------------------------------------------------


def status(catalog: Catalog, seen: Seen, who: Principal, confirmed: bool = True) -> Status:
    """What `who` may know of it all. `confirmed`: the catalog is what the repository holds. Pure."""
    replicas, shares = _by_place(seen.replicas), _by_place(share for beat in seen.gateways for share in beat.open)
    places = sorted(_shown(catalog) | replicas.keys() | shares.keys())
    versions = {
        place: _version(catalog, place, replicas.get(place, []), shares.get(place, []), who) for place in places
    }
    return Status(
        revision=catalog.revision,
        repository=confirmed,
        listening=seen.listening,
        models=[
            _model(catalog, model, [versions[place] for place in reversed(places) if place[0] == model])
            for model in sorted({*catalog.versions, *(model for model, _ in places)})
            if who.sees(model)
        ],
        gateways=[_gateway(beat, who) for beat in _sorted(seen.gateways)] if who.may(DEPLOY) else [],
    )


def _shown(catalog: Catalog) -> set[Place]:
    """Versions that matter now: wanted ones, and those that a worker still has."""
    return wanted(catalog) | {place for place, state in catalog.states.items() if state.state in HELD}


def _by_place(found: Iterable[T]) -> dict[Place, list[T]]:
    sorted_: dict[Place, list[T]] = {}
    for each in found:
        sorted_.setdefault((each.model, each.version), []).append(each)
    return sorted_


def _model(catalog: Catalog, model: str, versions: list[VersionStatus]) -> ModelStatus:
    return ModelStatus(name=model, deployment=deployment_view(catalog.deployment(model)), versions=versions)


def _version(
    catalog: Catalog, place: Place, replicas: list[ReplicaBeat], shares: list[Share], who: Principal
) -> VersionStatus:
    model, version = place
    known = catalog.version(model, version) is not None
    return VersionStatus(
        version=version,
        aliases=sorted(alias for alias, number in catalog.aliases.get(model, {}).items() if number == version),
        state=catalog.state(model, version) if known else UNAVAILABLE,
        reason=reason_for(who, catalog.states.get(place)) if known else DELETED,
        ready=sum(beat.state == READY for beat in replicas),
        waiting=sum(share.waiting for share in shares),
        oldest_ms=_ms(max((share.oldest for share in shares), default=0)),
        in_flight=sum(share.aboard for share in shares),
        demand=sum(share.demand for share in shares),
        where=[_replica(beat) for beat in _sorted(replicas)] if who.may(DEPLOY) else [],
    )


def _replica(beat: ReplicaBeat) -> ReplicaStatus:
    times = [seconds for _, seconds in beat.samples]
    return ReplicaStatus(
        instance=beat.sender,
        host=beat.host,
        pid=beat.pid,
        device=beat.device,
        state=beat.state,
        reason=beat.reason,
        in_flight=beat.in_flight,
        queue_wait_ms=_ms(beat.queue_wait),
        service_ms=round(1e3 * sum(times) / len(times), 3) if times else None,
        longest_ms=round(1e3 * max(times), 3) if times else None,
        rows=round(sum(rows for rows, _ in beat.samples) / len(times), 1) if times else None,
        busy=round(beat.busy, 3),
    )


def _gateway(beat: GatewayBeat, who: Principal) -> GatewayStatus:
    return GatewayStatus(
        instance=beat.sender,
        host=beat.host,
        pid=beat.pid,
        ready=beat.ready,
        revision=beat.revision,
        open=sorted(f"{share.model}/{share.version}" for share in beat.open if who.sees(share.model)),
    )


def _sorted(beats: Iterable[B]) -> list[B]:
    return sorted(beats, key=lambda beat: (beat.host, beat.sender))


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)
