"""What the reconciler begins, as a table: records, applications, beats → actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from core import beats
from core.beats import DRAINING, FAILED, STARTING, GatewayBeat, ReplicaBeat, Share
from repository.catalog import Place, catalog
from repository.records import (
    ALWAYS,
    AUTO,
    LOADING,
    NEVER,
    READY,
    UNAVAILABLE,
    UNLOADING,
    Alias,
    Version,
    VersionState,
)
from tests.workers.samples import version
from workers.placement import Cluster, Spec
from workers.plan import UNLOADED, Say, Unload
from workers.reconcile import (
    CRASHED,
    NEVER_HEARD,
    RESTARTING,
    Action,
    Actual,
    Application,
    Deploy,
    Fail,
    Open,
    plan,
    unheard,
    waiting,
)

ONE = Spec(1, 0.1)
RUNS = Application(ONE)
LACKING = "a replica asks for 4 CPUs: no node has that"


def v(number: int, wanted: str = AUTO, attempt: int = 1) -> Version:
    return version(number=number, wanted=wanted, attempt=attempt)


def s(number: int, state: str, reason: str = "", attempt: int = 1) -> VersionState:
    return VersionState(model="m", version=number, state=state, attempt=attempt, reason=reason)


def at(number: int) -> Place:
    return ("m", number)


def r(number: int, state: str, reason: str = "", note: str = "", attempt: int = 1) -> ReplicaBeat:
    return ReplicaBeat(
        sender=f"replica-{number}-{state}",
        boot="b",
        sent=0,
        model="m",
        version=number,
        attempt=attempt,
        state=state,
        reason=reason,
        note=note,
    )


def g(*open_: int) -> GatewayBeat:
    """A gateway that may send to these."""
    return GatewayBeat(
        sender=f"gateway-{open_}", boot="b", sent=0, revision=1, ready=True, open=[Share("m", n) for n in open_]
    )


class Case(NamedTuple):
    versions: Sequence[Version]
    expected: Sequence[str]
    states: Sequence[VersionState] = ()
    applications: Mapping[Place, Application] = {}
    replicas: Sequence[ReplicaBeat] = ()
    gateways: Sequence[GatewayBeat] = ()
    aliases: Sequence[Alias] = ()
    specs: Mapping[Place, Spec] = {}
    short: Mapping[Place, str] = {}
    unheard: Mapping[Place, float] = {}
    hearing: bool = True
    busy: Mapping[Place, str] = {}
    failed: Mapping[Place, int] = {}
    loads: int = 9


PATIENCE_S = 180.0


UPDATING = [s(1, READY), s(2, READY)]
BOTH = {at(1): RUNS, at(2): RUNS}

CASES: dict[str, Case] = {
    "a first version is deployed": Case([v(1)], ["deploy 1 fresh"]),
    "each aliased one too": Case(
        [v(1), v(2), v(3)],
        ["deploy 1 fresh", "deploy 3 fresh"],
        states=[s(2, UNAVAILABLE)],
        aliases=[Alias(model="m", alias="champion", version=1)],
    ),
    "not more at a time than may be": Case([v(1, ALWAYS), v(2)], ["deploy 1 fresh"], loads=1),
    "what waits for a node does not hold up others": Case(
        [v(1, ALWAYS), v(2)],
        ["deploy 2 fresh"],
        states=[s(1, UNAVAILABLE, LACKING)],
        applications={at(1): RUNS},
        short={at(1): LACKING},
        loads=1,
    ),
    "what was begun is left to end": Case([v(1)], [], busy={at(1): LOADING}),
    "what starts is left alone": Case(
        [v(1)], [], states=[s(1, LOADING)], applications={at(1): RUNS}, replicas=[r(1, STARTING)]
    ),
    "what is there before its record is said to be loading": Case(
        [v(1)], ["say 1 LOADING"], applications={at(1): RUNS}
    ),
    "a ready replica opens it": Case(
        [v(1)], ["open 1"], states=[s(1, LOADING)], applications={at(1): RUNS}, replicas=[r(1, beats.READY)]
    ),
    "though another one of it still starts, or failed": Case(
        [v(1)],
        ["open 1"],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        replicas=[r(1, STARTING), r(1, FAILED, "broken"), r(1, beats.READY)],
    ),
    "a refusal is told, and it is taken away": Case(
        [v(1)],
        ["fail 1 (1) broken"],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        replicas=[r(1, FAILED, "broken")],
    ),
    "a refusal at an earlier attempt is remembered as that": Case(
        [v(1, attempt=2)],
        ["fail 1 (1) broken"],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        replicas=[r(1, FAILED, "broken", attempt=1)],
    ),
    "once: it is still heard while the next attempt loads": Case(
        [v(1, attempt=2)],
        [],
        states=[s(1, LOADING, attempt=2)],
        applications={at(1): RUNS},
        replicas=[r(1, FAILED, "broken", attempt=1)],
        failed={at(1): 1},
    ),
    "nor is it opened by what was ready before it was found not to do": Case(
        [v(1, attempt=2)],
        [],
        states=[s(1, LOADING, attempt=2)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY, attempt=1), r(1, STARTING, attempt=2)],
        failed={at(1): 1},
    ),
    "but by what the next attempt has made": Case(
        [v(1, attempt=2)],
        ["open 1"],
        states=[s(1, LOADING, attempt=2)],
        applications={at(1): RUNS},
        replicas=[r(1, FAILED, "broken", attempt=1), r(1, beats.READY, attempt=2)],
        failed={at(1): 1},
    ),
    "which may fail in its own words": Case(
        [v(1, attempt=2)],
        ["fail 1 (2) worse"],
        states=[s(1, LOADING, attempt=2)],
        applications={at(1): RUNS},
        replicas=[r(1, FAILED, "broken", attempt=1), r(1, FAILED, "worse", attempt=2)],
        failed={at(1): 1},
    ),
    "and may be tried again to say so": Case(
        [v(1)],
        ["fail 1 (1) broken"],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        replicas=[r(1, FAILED, "broken")],
        failed={at(1): 1},
    ),
    "asked for again while it loads, it is opened as it is": Case(
        [v(1, attempt=2)],
        ["open 1"],
        states=[s(1, UNAVAILABLE, LACKING)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY, attempt=1)],
    ),
    "so is a process that dies at each start": Case(
        [v(1)],
        [f"fail 1 (1) {CRASHED}"],
        states=[s(1, LOADING)],
        applications={at(1): Application(ONE, failed=True)},
    ),
    "and one of which no replica is ever heard": Case(
        [v(1)],
        ["fail 1 (1) " + NEVER_HEARD.format(181)],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        unheard={at(1): 181.2},
    ),
    "whatever its record says": Case(
        [v(1)],
        ["fail 1 (1) " + NEVER_HEARD.format(200)],
        states=[s(1, UNAVAILABLE, LACKING)],
        applications={at(1): RUNS},
        unheard={at(1): 200},
    ),
    "not sooner": Case([v(1)], [], states=[s(1, LOADING)], applications={at(1): RUNS}, unheard={at(1): 180}),
    "not while nobody would be heard": Case(
        [v(1)], [], states=[s(1, LOADING)], applications={at(1): RUNS}, unheard={at(1): 999}, hearing=False
    ),
    "nor a version that was opened once: its replicas may come back": Case(
        [v(1)],
        [],
        states=[s(1, READY, RESTARTING)],
        applications={at(1): RUNS},
        unheard={at(1): 999},
    ),
    "nor one whose replica says what it waits for": Case(
        [v(1)],
        [],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        replicas=[r(1, STARTING, "the repository is away")],
    ),
    "and the old version serves on when the new one is never heard": Case(
        [v(1), v(2)],
        ["fail 2 (1) " + NEVER_HEARD.format(999)],
        states=[s(1, READY), s(2, LOADING)],
        applications=BOTH,
        replicas=[r(1, beats.READY)],
        gateways=[g(1)],
        unheard={at(2): 999},
    ),
    "what failed is not tried again": Case([v(1)], [], states=[s(1, UNAVAILABLE, "broken")], failed={at(1): 1}),
    "until somebody asks": Case(
        [v(1, ALWAYS, 2)], ["deploy 1 fresh"], states=[s(1, UNAVAILABLE, "broken")], failed={at(1): 1}
    ),
    "not while the failed one is still being taken away": Case(
        [v(1, ALWAYS, 2)],
        [],
        states=[s(1, UNAVAILABLE, "broken")],
        failed={at(1): 1},
        applications={at(1): Application(ONE, leaving=True)},
    ),
    "where no node has room, the record says so": Case(
        [v(1)],
        [f"say 1 UNAVAILABLE {LACKING}"],
        states=[s(1, LOADING)],
        applications={at(1): RUNS},
        short={at(1): LACKING},
    ),
    "once": Case(
        [v(1)],
        [],
        states=[s(1, UNAVAILABLE, LACKING)],
        applications={at(1): RUNS},
        short={at(1): LACKING},
    ),
    "and that it loads after all": Case(
        [v(1)], ["say 1 LOADING"], states=[s(1, UNAVAILABLE, LACKING)], applications={at(1): RUNS}
    ),
    "or that less will do": Case(
        [v(1)],
        ["deploy 1 changed"],
        states=[s(1, UNAVAILABLE, LACKING)],
        applications={at(1): Application(Spec(1, 4))},
        short={at(1): LACKING},
    ),
    "what serves is left alone": Case(
        [v(1)], [], states=[s(1, READY)], applications={at(1): RUNS}, replicas=[r(1, beats.READY)]
    ),
    "by a process that starts anew as well": Case(
        [v(1)], [], states=[s(1, READY)], applications={at(1): RUNS}, replicas=[r(1, beats.READY)], hearing=False
    ),
    "its note stands in the record": Case(
        [v(1)],
        ["say 1 READY noted"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY, note="noted")],
    ),
    "asking for what serves is answered": Case(
        [v(1, ALWAYS, 2)],
        ["say 1 READY"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY)],
    ),
    "while its replicas are started again it stays open, and people are told": Case(
        [v(1)], [f"say 1 READY {RESTARTING}"], states=[s(1, READY)], applications={at(1): RUNS}
    ),
    "in the words of the replica where it has some": Case(
        [v(1)],
        ["say 1 READY the repository is away"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        replicas=[r(1, STARTING, "the repository is away")],
    ),
    "silence of the broker says nothing": Case(
        [v(1)], [], states=[s(1, READY)], applications={at(1): RUNS}, hearing=False
    ),
    "the cluster came back empty": Case([v(1)], ["deploy 1 fresh"], states=[s(1, READY)]),
    "another number of replicas": Case(
        [v(1)],
        ["deploy 1 changed"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY)],
        specs={at(1): Spec(3, 0.1)},
    ),
    "another reservation, also while none is heard": Case(
        [v(1)],
        ["deploy 1 changed"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        specs={at(1): Spec(1, 1, 0.5, "H200")},
    ),
    "its new replicas find no node: the old ones serve on, and people are told": Case(
        [v(1)],
        [f"say 1 READY {LACKING}"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY)],
        short={at(1): LACKING},
    ),
    "the old version stays while the new one starts": Case(
        [v(1), v(2)],
        [],
        states=[s(1, READY), s(2, LOADING)],
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, STARTING)],
        gateways=[g(1)],
    ),
    "and while it fails": Case(
        [v(1), v(2)],
        ["fail 2 (1) broken"],
        states=[s(1, READY), s(2, LOADING)],
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, FAILED, "broken")],
        gateways=[g(1)],
    ),
    "and after": Case(
        [v(1), v(2)],
        [],
        states=[s(1, READY), s(2, UNAVAILABLE, "broken")],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY)],
        gateways=[g(1)],
        failed={at(2): 1},
    ),
    "and until every live gateway serves the new one": Case(
        [v(1), v(2)],
        [],
        states=UPDATING,
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
        gateways=[g(1, 2), g(1)],
    ),
    "then it goes": Case(
        [v(1), v(2)],
        ["unload 1"],
        states=UPDATING,
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
        gateways=[g(1, 2), g(1, 2)],
    ),
    "but not while its number of replicas changes": Case(
        [v(1), v(2)],
        [],
        states=UPDATING,
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
        gateways=[g(1, 2), g(1, 2)],
        busy={at(1): READY},
    ),
    "also where no gateway lives": Case(
        [v(1), v(2)],
        ["unload 1"],
        states=UPDATING,
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
    ),
    "not on the word of a silent broker": Case(
        [v(1), v(2)],
        [],
        states=UPDATING,
        applications=BOTH,
        hearing=False,
    ),
    "not twice": Case(
        [v(1), v(2)],
        [],
        states=[s(1, UNLOADING), s(2, READY)],
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
        gateways=[g(1, 2)],
        busy={at(1): UNLOADING},
    ),
    "a process that died while it unloaded is taken over": Case(
        [v(1), v(2)],
        ["unload 1"],
        states=[s(1, UNLOADING), s(2, READY)],
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
        gateways=[g(2)],
    ),
    "also after its application went": Case(
        [v(1), v(2)],
        [f"say 1 UNAVAILABLE {UNLOADED}"],
        states=[s(1, UNLOADING), s(2, READY)],
        applications={at(2): RUNS},
        replicas=[r(2, beats.READY)],
    ),
    "wanted again while it was being unloaded": Case(
        [v(1, ALWAYS), v(2)],
        ["open 1"],
        states=[s(1, UNLOADING), s(2, READY)],
        applications=BOTH,
        replicas=[r(1, beats.READY), r(2, beats.READY)],
        gateways=[g(2)],
    ),
    "but not while Serve is deleting it": Case(
        [v(1, ALWAYS), v(2)],
        [],
        states=[s(1, UNLOADING), s(2, READY)],
        applications={at(1): Application(ONE, leaving=True), at(2): RUNS},
        replicas=[r(1, DRAINING), r(2, beats.READY)],
        gateways=[g(2)],
    ),
    "unloaded by name": Case(
        [v(1, NEVER)],
        ["unload 1"],
        states=[s(1, READY)],
        applications={at(1): RUNS},
        replicas=[r(1, beats.READY)],
        gateways=[g(1)],
    ),
    "no longer wanted before it was ever ready": Case(
        [v(1), v(2), v(3)],
        ["unload 2"],
        states=[s(1, READY), s(2, UNAVAILABLE, LACKING), s(3, LOADING)],
        applications={at(1): RUNS, at(2): RUNS, at(3): RUNS},
        replicas=[r(1, beats.READY), r(3, STARTING)],
        gateways=[g(1)],
        short={at(2): LACKING},
    ),
    "deleted": Case([], ["unload 1"], applications={at(1): RUNS}, replicas=[r(1, beats.READY)], gateways=[g(1)]),
}


def told(action: Action) -> str:
    if isinstance(action, Unload):
        return f"unload {action.place[1]}"
    number = action.version.version
    if isinstance(action, Deploy):
        return f"deploy {number} {'fresh' if action.fresh else 'changed'}"
    if isinstance(action, Open):
        return f"open {number}"
    if isinstance(action, Fail):
        return f"fail {number} ({action.attempt}) {action.reason}"
    assert isinstance(action, Say)
    return f"say {number} {action.state} {action.reason}".strip()


def planned(case: Case) -> list[Action]:
    replicas: dict[Place, list[ReplicaBeat]] = {}
    for beat in case.replicas:
        replicas.setdefault((beat.model, beat.version), []).append(beat)
    actual = Actual(case.applications, replicas, case.gateways, case.short, case.unheard, case.hearing)
    specs = {(each.model, each.version): ONE for each in case.versions} | dict(case.specs)
    seen = catalog(1, case.versions, case.states, case.aliases)
    return plan(seen, specs, actual, case.busy, case.failed, case.loads, PATIENCE_S)


@pytest.mark.parametrize("case", CASES)
def test_plan(case: str) -> None:
    assert sorted(map(told, planned(CASES[case]))) == sorted(CASES[case].expected)


@pytest.mark.parametrize("case", CASES)
def test_one_action_a_version(case: str) -> None:
    """So that no two of them work on the same one."""
    actions = planned(CASES[case])
    places = [a.place if isinstance(a, Unload) else (a.version.model, a.version.version) for a in actions]
    assert len(places) == len(set(places))
    assert not set(places) & CASES[case].busy.keys()


def test_a_waiting_replica_is_of_an_application_that_lacks_one() -> None:
    """Two of one shape: where one has all that it is to have, the other is meant; while neither has, both may be."""
    whole, lacking = Application(RUNS.spec, settled=True), Application(RUNS.spec)
    short_of_one = Cluster([], [RUNS.spec.resources])
    assert waiting({at(1): whole, at(2): lacking}, short_of_one) == {at(2)}
    assert waiting({at(1): lacking, at(2): lacking}, short_of_one) == {at(1), at(2)}
    assert waiting({at(1): lacking}, Cluster()) == set()


HERE = {at(1): RUNS, at(2): RUNS, at(3): RUNS}


@pytest.mark.parametrize(
    ("actual", "since"),
    [
        (Actual(HERE, {}), {at(1): 5.0, at(2): 9.0, at(3): 9.0}),
        (Actual(HERE, {at(1): [r(1, STARTING)], at(2): []}), {at(2): 9.0, at(3): 9.0}),
        (Actual(HERE, {}, short={at(1): LACKING}), {at(2): 9.0, at(3): 9.0}),
        (Actual({at(2): RUNS}, {}), {at(2): 9.0}),
        (Actual(HERE, {}, hearing=False), {}),
    ],
    ids=["silent", "one is heard", "one has no node", "gone", "nobody would be heard"],
)
def test_silence_is_counted_from_when_it_began(actual: Actual, since: Mapping[Place, float]) -> None:
    """Of 1 since 5; now is 9."""
    assert unheard({at(1): 5.0}, actual, 9.0) == since
