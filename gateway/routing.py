"""Model, alias or version → the open version that serves it. Pure: an immutable table, built from a catalog.

A request without a version gets the alias `champion` where it is set, else the highest open version. A name that is
known but has nothing open is NotReady; one that is not known, or that the caller may not see, is NotFound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from core.errors import InvalidRequest, NotFound, NotReady
from core.identity import Principal
from core.names import CHAMPION, NAME, VERSION
from gateway.fit import Mould
from repository.records import LOADING, Alias, Version

if TYPE_CHECKING:
    from gateway.batching.batcher import Batcher
    from gateway.recorder import VersionRecorder
    from gateway.statistics import Statistics


class Route:
    """An open version and what a request to it needs: its mould, its batcher, what records it."""

    __slots__ = ("batched", "batcher", "budget", "labels", "mould", "name", "number", "recorder", "version")

    def __init__(self, version: Version, batcher: Batcher, recorder: VersionRecorder) -> None:
        self.version = version
        self.name = version.model
        self.number = str(version.version)
        self.batched = version.max_batch > 0
        self.budget = version.default_deadline_ms * 1_000_000
        """Nanoseconds that a request has which names no timeout."""
        self.mould = Mould(version.signature, version.max_batch)
        self.labels = {spec.name: spec.labels for spec in version.signature.outputs}
        self.batcher = batcher
        self.recorder = recorder

    @property
    def statistics(self) -> Statistics:
        """V2's."""
        return self.recorder.statistics


Key = tuple[str, int]


class Table:
    """What is open, what is known, and who may stand for a version."""

    __slots__ = ("_aliases", "_direct", "_known")

    def __init__(
        self, routes: Iterable[Route] = (), known: Mapping[Key, str] | None = None, aliases: Iterable[Alias] = ()
    ) -> None:
        """`known`: every recorded version → its state."""
        self._known = dict(known or {})
        self._aliases = {(alias.model, alias.alias): alias.version for alias in aliases}
        self._direct = self._index(list(routes))

    def _index(self, routes: list[Route]) -> dict[tuple[str, str], Route]:
        direct: dict[tuple[str, str], Route] = {}
        for route in sorted(routes, key=lambda route: route.version.version):
            direct[route.name, route.number] = direct[route.name, ""] = route
        for (model, alias), version in self._aliases.items():
            found = direct.get((model, str(version)))
            if found is not None:
                direct[model, alias] = found
            if alias == CHAMPION:
                if found is None:
                    direct.pop((model, ""), None)
                else:
                    direct[model, ""] = found
        return direct

    def resolve(self, model: str, version: str, principal: Principal) -> Route:
        """The route of a request. Raises InvalidRequest, NotFound or NotReady."""
        if principal.sees(model):
            route = self._direct.get((model, version))
            if route is not None:
                return route
        raise self._why_not(model, version, principal)

    def open(self, principal: Principal) -> list[Route]:
        """Every open route that the principal may see, by model and version."""
        found = {(route.name, route.version.version): route for route in self._direct.values()}
        return [found[key] for key in sorted(found) if principal.sees(key[0])]

    def number(self, model: str, version: str, principal: Principal) -> int | None:
        """The recorded version that a name stands for, open or not; None where it is the model's default and none
        is open. Raises InvalidRequest or NotFound."""
        numbers = sorted(number for name, number in self._known if name == model)
        if not NAME.match(model):
            raise InvalidRequest(f"{model[:128]!r} is no model name")
        if not numbers or not principal.sees(model):
            raise NotFound(f"unknown model {model!r}")
        if version == "":
            return self._default(model)
        number = int(version) if VERSION.match(version) else self._aliases.get((model, version))
        if number not in numbers:
            raise NotFound(f"model {model!r} has no version or alias {version[:128]!r}")
        return number

    def _default(self, model: str) -> int | None:
        champion = self._aliases.get((model, CHAMPION))
        route = self._direct.get((model, ""))
        return champion or (route.version.version if route else None)

    def _why_not(self, model: str, version: str, principal: Principal) -> InvalidRequest | NotFound | NotReady:
        number = self.number(model, version, principal)
        if number is None:
            error = NotReady(f"no version of model {model!r} is ready")
        else:
            loading = self._known.get((model, number)) == LOADING
            error = NotReady(f"version {number} of model {model!r} is {'loading' if loading else 'not ready'}")
        error.version = (model, "" if number is None else str(number))
        return error
