"""What a host begins, as a table: catalog, what it holds, what failed → actions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

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
from workers.plan import UNLOADED, Load, Say, Unload, plan


def v(number: int, wanted: str = AUTO, attempt: int = 1) -> Version:
    return version(number=number, wanted=wanted, attempt=attempt)


def s(number: int, state: str, attempt: int = 1, reason: str = "") -> VersionState:
    return VersionState(model="m", version=number, state=state, attempt=attempt, reason=reason)


def at(number: int) -> Place:
    return ("m", number)


CASES: dict[
    str, tuple[list[Version], list[VersionState], list[Alias], Mapping[Place, str], Mapping[Place, int], list[str]]
] = {
    "a first version is loaded": ([v(1)], [], [], {}, {}, ["load 1"]),
    "only the highest is": ([v(1), v(2)], [], [], {}, {}, ["say 1 UNAVAILABLE", "load 2"]),
    "and each aliased one": (
        [v(1), v(2), v(3)],
        [s(2, UNAVAILABLE)],
        [Alias(model="m", alias="champion", version=1)],
        {},
        {},
        ["load 1", "load 3"],
    ),
    "and each asked for by name": ([v(1, ALWAYS), v(2)], [], [], {}, {}, ["load 1", "load 2"]),
    "what is loading is left alone": ([v(1)], [s(1, LOADING)], [], {at(1): LOADING}, {}, []),
    "what is ready is left alone": ([v(1)], [s(1, READY)], [], {at(1): READY}, {}, []),
    "the old one stays while the new one loads": (
        [v(1), v(2)],
        [s(1, READY), s(2, LOADING)],
        [],
        {at(1): READY, at(2): LOADING},
        {},
        [],
    ),
    "and while it fails": (
        [v(1), v(2)],
        [s(1, READY), s(2, UNAVAILABLE)],
        [],
        {at(1): READY},
        {at(2): 1},
        [],
    ),
    "it goes once the new one is ready": (
        [v(1), v(2)],
        [s(1, READY), s(2, READY)],
        [],
        {at(1): READY, at(2): READY},
        {},
        ["unload 1"],
    ),
    "also before the records say so": (
        [v(1), v(2)],
        [s(1, READY), s(2, LOADING)],
        [],
        {at(1): READY, at(2): READY},
        {},
        ["unload 1"],
    ),
    "but not twice": (
        [v(1), v(2)],
        [s(1, READY), s(2, READY)],
        [],
        {at(1): UNLOADING, at(2): READY},
        {},
        [],
    ),
    "nor while the new one's process is being restarted": (
        [v(1), v(2)],
        [s(1, UNAVAILABLE), s(2, UNAVAILABLE, reason="its process died")],
        [],
        {at(2): READY},
        {},
        [],
    ),
    "unloaded by name": ([v(1, NEVER)], [s(1, READY)], [], {at(1): READY}, {}, ["unload 1"]),
    "unloaded by name while loading waits": ([v(1, NEVER)], [s(1, LOADING)], [], {at(1): LOADING}, {}, []),
    "unloaded by name and already gone": (
        [v(1, NEVER, attempt=2)],
        [s(1, UNAVAILABLE)],
        [],
        {},
        {},
        ["say 1 UNAVAILABLE"],
    ),
    "deleted while ready": ([], [], [], {at(1): READY}, {}, ["unload 1"]),
    "what failed is not tried again": ([v(1)], [s(1, UNAVAILABLE)], [], {}, {at(1): 1}, []),
    "until somebody asks": ([v(1, ALWAYS, 2)], [s(1, UNAVAILABLE)], [], {}, {at(1): 1}, ["load 1"]),
    "asking for what is ready is answered": (
        [v(1, ALWAYS, 2)],
        [s(1, READY)],
        [],
        {at(1): READY},
        {},
        ["say 1 READY"],
    ),
    "a dead process's states are reset": (
        [v(1), v(2)],
        [s(1, UNLOADING), s(2, READY)],
        [],
        {},
        {},
        ["say 1 UNAVAILABLE", "load 2"],
    ),
    "after a restart the stand-in is loaded beside a version that fails": (
        [v(1), v(2)],
        [s(1, READY), s(2, UNAVAILABLE)],
        [],
        {},
        {},
        ["load 1", "load 2"],
    ),
}


def told(action: Load | Unload | Say) -> str:
    if isinstance(action, Load):
        return f"load {action.version.version}"
    if isinstance(action, Unload):
        return f"unload {action.place[1]}"
    return f"say {action.version.version} {action.state}"


@pytest.mark.parametrize("case", CASES)
def test_plan(case: str) -> None:
    versions, states, aliases, held, failed, expected = CASES[case]
    actions = plan(catalog(1, versions, states, aliases), held, failed)
    assert sorted(map(told, actions)) == sorted(expected)


def test_a_reason_that_stands_is_kept_when_it_is_confirmed() -> None:
    (action,) = plan(catalog(1, [v(1, ALWAYS, 2)], [s(1, READY, reason="noted")]), {at(1): READY}, {})
    assert action == Say(v(1, ALWAYS, 2), READY, "noted")


def test_an_unwanted_version_is_said_to_be_unloaded() -> None:
    (action,) = plan(catalog(1, [v(1, NEVER)], [s(1, LOADING)]), {}, {})
    assert action == Say(v(1, NEVER), UNAVAILABLE, UNLOADED)
