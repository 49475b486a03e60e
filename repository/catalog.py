"""Everything the repository says at one revision, as immutable mappings: what routes, plans and lists are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import structlog

from core.identity import PERMITS, Credential, Principal
from core.names import CHAMPION, VERSION
from repository.records import READY, UNKNOWN, Alias, ApiKey, Deployment, Version, VersionState

log = structlog.get_logger(__name__)

Place = tuple[str, int]
"""(model, version)"""


@dataclass(frozen=True, slots=True)
class Catalog:
    """`versions` and `aliases` go by model first; a model is there as long as it has a version."""

    revision: int = -1
    """Of the store when this was read; -1: nothing was read yet."""
    versions: Mapping[str, Mapping[int, Version]] = field(default_factory=dict)
    """Model → version number → version, in ascending order of numbers."""
    states: Mapping[Place, VersionState] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Model → alias → version number."""
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """Key id → key, revoked ones included."""
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    """Model → its deployment, where one was set: `deployment` knows the defaults."""

    def version(self, model: str, version: int) -> Version | None:
        return self.versions.get(model, {}).get(version)

    def all_versions(self) -> list[Version]:
        return [version for versions in self.versions.values() for version in versions.values()]

    def all_aliases(self) -> list[Alias]:
        named = [(model, alias, number) for model, of in self.aliases.items() for alias, number in of.items()]
        return [Alias(model=model, alias=alias, version=number) for model, alias, number in named]

    def state(self, model: str, version: int) -> str:
        """READY, LOADING, …; UNKNOWN where no worker has said anything yet. `states` has the records."""
        state = self.states.get((model, version))
        return UNKNOWN if state is None else state.state

    def ready(self, model: str, version: int) -> bool:
        return self.state(model, version) == READY

    def highest(self, model: str) -> int | None:
        """The highest version number of a model, whatever its state."""
        return max(self.versions.get(model, ()), default=None)

    def resolve(self, model: str, version: str = "") -> int | None:
        """The number that digits or an alias stand for, if there is such a version.

        Without a version: the champion's, else the highest that is ready, else the highest.
        """
        if VERSION.match(version):
            return int(version) if self.version(model, int(version)) else None
        aliased = self.aliases.get(model, {}).get(version or CHAMPION)
        if aliased is not None or version:
            return aliased
        ready = [number for number in self.versions.get(model, ()) if self.ready(model, number)]
        return max(ready, default=self.highest(model))

    def deployment(self, model: str) -> Deployment:
        """How the model's versions are to run; revision 0 where nothing was set and the defaults hold."""
        return self.deployments.get(model) or Deployment(model=model)

    def credentials(self) -> list[Credential]:
        """What the verifier needs of every key that is not revoked. One that cannot be read lets nobody in, and keeps
        no other key from being changed or revoked."""
        found = (_credential_or_none(key) for key in self.keys.values() if not key.revoked)
        return [credential for credential in found if credential is not None]


def _credential_or_none(key: ApiKey) -> Credential | None:
    try:
        return credential_of(key)
    except ValueError as error:
        _name_unreadable(key.key_id, str(error))
        return None


@lru_cache(1024)
def _name_unreadable(key_id: str, why: str) -> None:
    """Once in the log, however often the catalog is read."""
    log.error("key_unreadable", key_id=key_id[:64], error=why)


def credential_of(key: ApiKey) -> Credential:
    """Raises ValueError for a record that no key can be told by."""
    if key.role not in PERMITS:
        raise ValueError(f"the role {key.role[:64]!r} is none")
    principal = Principal(key.key_id, key.name, key.owner, key.role, key.patterns, frozenset(key.grants))
    return Credential(principal, bytes.fromhex(key.digest), key.expires)


def catalog(
    revision: int,
    versions: Iterable[Version] = (),
    states: Iterable[VersionState] = (),
    aliases: Iterable[Alias] = (),
    keys: Iterable[ApiKey] = (),
    deployments: Iterable[Deployment] = (),
) -> Catalog:
    """Sort records into a Catalog. States, aliases and deployments of what is gone are left out."""
    by_model: dict[str, dict[int, Version]] = {}
    for version in sorted(versions, key=lambda version: (version.model, version.version)):
        by_model.setdefault(version.model, {})[version.version] = version
    by_alias: dict[str, dict[str, int]] = {}
    for alias in aliases:
        if alias.version in by_model.get(alias.model, ()):
            by_alias.setdefault(alias.model, {})[alias.alias] = alias.version
    known = {(s.model, s.version): s for s in states if s.version in by_model.get(s.model, ())}
    deployed = {deployment.model: deployment for deployment in deployments if deployment.model in by_model}
    return Catalog(revision, by_model, known, by_alias, {key.key_id: key for key in keys}, deployed)
