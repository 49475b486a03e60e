"""How everything stands: what catalog and beats come to, as a table, and what each caller is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from control.status import DELETED, Seen, Status, VersionStatus, nobody, status
from core.beats import DRAINING, FAILED, GatewayBeat, ReplicaBeat, Share
from core.identity import ADMIN, PREDICT, Principal
from repository.catalog import Catalog, catalog
from repository.records import Alias, Deployment, VersionState
from tests.control.site import Site, upload
from tests.repository.scripted import ROOT, a_state, a_version

READER = Principal("r", "r", "r", PREDICT)
OTHER = Principal("o", "o", "o", ADMIN, ("other-*",))
MS = 1_000_000


def a_replica(model: str = "m", version: int = 1, **fields: Any) -> ReplicaBeat:
    beat = ReplicaBeat(
        sender="w1", boot="b", sent=0, host="h1", pid=7, model=model, version=version, attempt=1, state="READY"
    )
    return replace(beat, **fields)


def a_gateway(*open_: Share, **fields: Any) -> GatewayBeat:
    return replace(
        GatewayBeat(sender="g1", boot="b", sent=0, host="h1", revision=7, ready=True, open=[*open_]), **fields
    )


def known(*states: VersionState, versions: int = 1, **more: Any) -> Catalog:
    return catalog(7, [a_version("m", number) for number in range(1, versions + 1)], states, **more)


def of(found: Status, model: str = "m") -> dict[int, VersionStatus]:
    (one,) = [each for each in found.models if each.name == model]
    return {version.version: version for version in one.versions}


@pytest.mark.parametrize(
    ("made", "replicas", "expected"),
    [
        (known(), [], {1: ("UNKNOWN", 0, 0)}),
        (known(a_state("m", 1, "LOADING")), [a_replica(state="STARTING")], {1: ("LOADING", 0, 1)}),
        (known(a_state("m", 1, "READY")), [a_replica()], {1: ("READY", 1, 1)}),
        (
            known(a_state("m", 1, "READY")),
            [a_replica(), a_replica(sender="w2"), a_replica(sender="w3", state=DRAINING), a_replica("n")],
            {1: ("READY", 2, 3)},
        ),
        (
            known(a_state("m", 1, "READY"), a_state("m", 2, "LOADING"), versions=2),
            [a_replica(), a_replica(version=2, sender="w2", state="STARTING")],
            {2: ("LOADING", 0, 1), 1: ("READY", 1, 1)},
        ),
        (
            known(a_state("m", 1, "UNAVAILABLE"), a_state("m", 2, "READY"), versions=2),
            [a_replica(version=2)],
            {2: ("READY", 1, 1)},
        ),
        (known(a_state("m", 1, "READY")), [a_replica(version=9)], {9: ("UNAVAILABLE", 1, 1), 1: ("READY", 0, 0)}),
        (known(a_state("m", 1, "READY")), [a_replica(state=FAILED)], {1: ("READY", 0, 1)}),
    ],
    ids=["unknown", "loading", "ready", "three replicas", "switching", "old one gone", "deleted", "failed"],
)
def test_versions_and_their_replicas(
    made: Catalog, replicas: list[ReplicaBeat], expected: dict[int, tuple[str, int, int]]
) -> None:
    """What is wanted, loaded or still running is shown, newest first: its state, replicas ready, replicas there."""
    found = of(status(made, Seen(replicas, []), ROOT))
    assert {number: (v.state, v.ready, len(v.where)) for number, v in found.items()} == expected
    assert list(found) == list(expected)


def test_what_is_asked_for_stands_beside_it() -> None:
    """The deployment, or its defaults; the aliases; the reason of a failure."""
    failed = VersionState(model="m", version=1, state="UNAVAILABLE", reason="no such op")
    aliases = [Alias(model="m", alias=alias, version=1) for alias in ("champion", "blue")]
    made = known(failed, aliases=aliases, deployments=[Deployment(model="m", replicas=2, max_replicas=8)])
    (model,) = status(made, nobody(), ROOT).models
    assert (model.deployment.replicas, model.deployment.max_replicas) == (2, 8)
    assert (model.versions[0].aliases, model.versions[0].reason) == (["blue", "champion"], "no such op")
    (model,) = status(known(), nobody(), ROOT).models
    assert (model.deployment.replicas, model.deployment.max_replicas) == (1, 1)


def test_queues_are_those_of_all_gateways() -> None:
    """Rows waiting and asked for, batches in flight are summed; the oldest is the oldest anywhere."""
    one = a_gateway(Share("m", 1, demand=10, waiting=3, oldest=5 * MS, aboard=1))
    two = a_gateway(Share("m", 1, demand=20, waiting=4, oldest=2 * MS, aboard=2), sender="g2", host="h2", ready=False)
    found = status(known(a_state("m", 1, "READY")), Seen([], [two, one]), ROOT)
    version = of(found)[1]
    assert (version.demand, version.waiting, version.oldest_ms, version.in_flight) == (30, 7, 5.0, 3)
    assert [(g.instance, g.host, g.ready, g.revision, g.open) for g in found.gateways] == [
        ("g1", "h1", True, 7, ["m/1"]),
        ("g2", "h2", False, 7, ["m/1"]),
    ]


def test_a_replica_says_where_it_is_and_how_busy() -> None:
    """Host and device; means of the last second in milliseconds, nothing where nothing ran."""
    busy = a_replica(
        device="cuda:1", in_flight=2, queue_wait=3 * MS, busy=0.5, samples=[(8, 0.010), (16, 0.020)], sender="w2"
    )
    idle, working = of(status(known(), Seen([busy, a_replica()], []), ROOT))[1].where
    assert (idle.host, idle.device, idle.service_ms, idle.longest_ms, idle.rows) == ("h1", "cpu", None, None, None)
    assert (working.host, working.device, working.in_flight, working.busy) == ("h1", "cuda:1", 2, 0.5)
    assert (working.queue_wait_ms, working.service_ms, working.longest_ms, working.rows) == (3.0, 15.0, 20.0, 12.0)


def test_a_reader_learns_how_models_stand_and_not_where() -> None:
    """Counts and states; no host, no gateway, no reason that could quote the model."""
    failed = VersionState(model="m", version=1, state="UNAVAILABLE", reason="secret path")
    seen = Seen([a_replica(state=FAILED, reason="secret path")], [a_gateway(Share("m", 1, waiting=3))])
    found = status(known(failed), seen, READER)
    assert (of(found)[1].waiting, of(found)[1].where, found.gateways) == (3, [], [])
    assert of(found)[1].reason == "not loaded"
    assert "secret" not in found.model_dump_json()
    assert "h1" not in found.model_dump_json()


def test_models_beyond_the_keys_patterns_are_not_there() -> None:
    """Neither as models nor as what a gateway has open."""
    found = status(known(), Seen([a_replica()], [a_gateway(Share("m", 1))]), OTHER)
    assert (found.models, found.gateways[0].open) == ([], [])


def test_what_is_deleted_is_shown_until_it_is_gone() -> None:
    """A model without a record that a replica still serves, or a gateway still drains."""
    found = status(catalog(8), Seen([a_replica("old")], [a_gateway(Share("older", 3))]), ROOT)
    assert [(model.name, [v.version for v in model.versions]) for model in found.models] == [
        ("old", [1]),
        ("older", [3]),
    ]
    assert of(found, "old")[1].reason == DELETED


def test_silence_is_told_from_absence() -> None:
    """Whether there was somebody to hear, and whether the repository could be read."""
    assert not status(known(), nobody(), ROOT).listening
    assert status(known(), Seen([], []), ROOT).listening
    assert not status(known(), Seen([], []), ROOT, confirmed=False).repository


async def test_the_route_tells_what_the_watch_knows(site: Site) -> None:
    """Without asking the repository: it answers while that is away, and says so."""
    async with site.client() as client:
        await client.post("models/m/versions", files=upload())
        await site.bench.store.close()
        site.bench.watch.adopt(site.bench.watch.catalog)
        answer = await client.get("status")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["repository"], told["listening"], told["gateways"]) == (False, False, [])
    assert [model["name"] for model in told["models"]] == ["m"]
