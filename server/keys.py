"""Who may come in, by the keys of a repository that may be away."""

from __future__ import annotations

from core.errors import Unavailable
from core.identity import Principal, Verifier
from repository.watch import Watch


class Keys(Verifier):
    """Until the repository was read nobody can be told from anybody: that is no fault of the caller's."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        watch.subscribe(lambda catalog: self.replace(catalog.credentials()))

    def verify(self, credential: bytes | None) -> Principal:
        if credential and self._watch.catalog.revision < 0:
            raise Unavailable("the repository does not answer yet, so keys are not known")
        return super().verify(credential)
