"""Who may come in, by the keys of a repository that may be away."""

from __future__ import annotations

from core.errors import Unavailable
from core.identity import Principal, Verifier
from repository.catalog import Catalog
from repository.watch import Watch


class Keys(Verifier):
    """Until the repository was read nobody can be told from anybody: that is no fault of the caller's."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._known = False
        watch.subscribe(self._changed)

    def verify(self, credential: bytes | None) -> Principal:
        if credential and not self._known:
            raise Unavailable("the repository does not answer yet, so keys are not known")
        return super().verify(credential)

    def _changed(self, catalog: Catalog) -> None:
        self.replace(catalog.credentials())
        self._known = True
