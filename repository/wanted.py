"""Which versions should be loaded: the rule that workers make come true."""

from __future__ import annotations

from collections.abc import Mapping

from repository.catalog import Catalog, Place
from repository.records import ALWAYS, LOADING, NEVER, READY, Version


def wanted(catalog: Catalog) -> set[Place]:
    """(model, version) of all versions that should be loaded.

    Of each model the highest version, each aliased one and each asked for by name, except those unloaded by name.
    While the highest is not ready, the highest one that is stays, so that something serves.
    """
    return {
        (model, number)
        for model, versions in catalog.versions.items()
        for number in _of_model(catalog, model, versions)
        if versions[number].wanted != NEVER
    }


def _of_model(catalog: Catalog, model: str, versions: Mapping[int, Version]) -> set[int]:
    highest = max(versions)
    numbers = {highest, *catalog.aliases.get(model, {}).values()}
    numbers |= {number for number, version in versions.items() if version.wanted == ALWAYS}
    if not catalog.ready(model, highest):
        numbers |= _stand_in(catalog, model, versions, highest)
    return numbers


def _stand_in(catalog: Catalog, model: str, versions: Mapping[int, Version], highest: int) -> set[int]:
    """The highest ready version; where none is ready, the highest other one that is being loaded (so at a restart,
    when the version that served before has to be loaded again while a higher one is tried again, and fails again)."""
    for state in (READY, LOADING):
        found = [
            number
            for number, version in versions.items()
            if number != highest and version.wanted != NEVER and catalog.state(model, number) == state
        ]
        if found:
            return {max(found)}
    return set()
