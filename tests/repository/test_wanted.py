"""Which versions should be loaded."""

from __future__ import annotations

import pytest

from repository.catalog import catalog
from repository.records import Alias
from repository.wanted import wanted
from tests.repository.scripted import a_state, a_version

Marks = dict[int, str]


def numbers(marks: Marks, states: Marks | None = None, aliases: tuple[int, ...] = ()) -> set[int]:
    """The wanted versions of model m. `marks`: version → wanted; `states`: version → state."""
    made = catalog(
        1,
        [a_version("m", number, wanted=mark) for number, mark in marks.items()],
        [a_state("m", number, state) for number, state in (states or {}).items()],
        [Alias(model="m", alias=f"a{number}", version=number) for number in aliases],
    )
    return {number for _, number in wanted(made)}


CASES: dict[str, tuple[Marks, Marks, tuple[int, ...], set[int]]] = {
    "the highest": ({1: "auto", 2: "auto"}, {2: "READY", 1: "READY"}, (), {2}),
    "each aliased one": ({1: "auto", 2: "auto", 3: "auto"}, {3: "READY"}, (1,), {1, 3}),
    "each asked for by name": ({1: "always", 2: "auto", 3: "auto"}, {3: "READY"}, (), {1, 3}),
    "not what was unloaded by name": ({1: "auto", 2: "never"}, {}, (), set()),
    "not even aliased": ({1: "never", 2: "auto"}, {2: "READY"}, (1,), {2}),
    "the ready one stays while the highest loads": ({1: "auto", 2: "auto"}, {1: "READY", 2: "LOADING"}, (), {1, 2}),
    "and when it failed": ({1: "auto", 2: "auto"}, {1: "READY", 2: "UNAVAILABLE"}, (), {1, 2}),
    "and before anybody took it up": ({1: "auto", 2: "auto"}, {1: "READY"}, (), {1, 2}),
    "only the highest ready one": (
        {1: "auto", 2: "auto", 3: "auto"},
        {1: "READY", 2: "READY", 3: "LOADING"},
        (),
        {2, 3},
    ),
    "not one that was unloaded by name": ({1: "never", 2: "auto"}, {1: "READY", 2: "LOADING"}, (), {2}),
    "a stand-in that loads again": ({1: "auto", 2: "auto"}, {1: "LOADING", 2: "UNAVAILABLE"}, (), {1, 2}),
    "and while the highest is tried again": ({1: "auto", 2: "auto"}, {1: "LOADING", 2: "LOADING"}, (), {1, 2}),
    "no stand-in that failed too": ({1: "auto", 2: "auto"}, {1: "UNAVAILABLE", 2: "UNAVAILABLE"}, (), {2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule(case: str) -> None:
    """The table above is the rule."""
    marks, states, aliases, expected = CASES[case]
    assert numbers(marks, states, aliases) == expected


def test_models_do_not_mix() -> None:
    """Each model has its own highest version."""
    made = catalog(1, [a_version("a", 1), a_version("a", 2), a_version("b", 1)], [a_state("a", 2, "READY")])
    assert wanted(made) == {("a", 2), ("b", 1)}
