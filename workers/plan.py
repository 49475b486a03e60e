"""What a host has to do so that what is loaded becomes what is wanted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from repository.catalog import Catalog, Place
from repository.records import READY, UNAVAILABLE, Version, VersionState
from repository.wanted import wanted

UNLOADED = "unloaded"
"""The reason of a version that is not loaded because nobody wants it."""


class Load(NamedTuple):
    version: Version


class Unload(NamedTuple):
    place: Place


class Say(NamedTuple):
    """Write this state: the record says something else, or answers an earlier attempt."""

    version: Version
    state: str
    reason: str


Action = Load | Unload | Say


def plan(catalog: Catalog, held: Mapping[Place, str], failed: Mapping[Place, int]) -> list[Action]:
    """What to begin now.

    `held`: LOADING, READY or UNLOADING of everything that this host has in hand; it knows better than the records,
    which may lag, or be those of a process that died. `failed`: the attempt at which a version did not load; it is
    tried again when somebody asks for another.
    """
    seen = as_held(catalog, held)
    want = wanted(seen)
    actions = [
        action
        for version in catalog.all_versions()
        if (action := _of(version, want, held, failed, catalog.states.get((version.model, version.version))))
    ]
    gone = [place for place, phase in held.items() if phase == READY and catalog.version(*place) is None]
    return [*actions, *map(Unload, gone)]


def _of(
    version: Version,
    want: set[Place],
    held: Mapping[Place, str],
    failed: Mapping[Place, int],
    state: VersionState | None,
) -> Action | None:
    place = (version.model, version.version)
    phase = held.get(place)
    if place in want:
        if phase is None:
            return Load(version) if failed.get(place) != version.attempt else None
        return _confirm(version, state) if phase == READY and _behind(version, READY, state) else None
    if phase is None:
        return Say(version, UNAVAILABLE, UNLOADED) if _behind(version, UNAVAILABLE, state) else None
    return Unload(place) if phase == READY else None


def _confirm(version: Version, state: VersionState | None) -> Say:
    """Answer a later attempt with what stands: READY, or UNAVAILABLE while its process is being restarted."""
    return Say(version, READY, "") if state is None else Say(version, state.state, state.reason)


def _behind(version: Version, truth: str, state: VersionState | None) -> bool:
    """Whether the record does not answer this attempt. A child that restarts says UNAVAILABLE while it is held."""
    if state is None or state.attempt != version.attempt:
        return True
    return truth == UNAVAILABLE and state.state != UNAVAILABLE


def as_held(catalog: Catalog, held: Mapping[Place, str]) -> Catalog:
    """The catalog with the states that the host knows to be true."""
    known = {
        (model, number): VersionState(model=model, version=number, state=phase)
        for (model, number), phase in held.items()
    }
    return replace(catalog, states={**catalog.states, **known})
