"""Keys for a process that keeps no connection to the repository: fetched when somebody asks, and kept for a moment."""

from __future__ import annotations

import asyncio
import threading
import time

from core.errors import Unavailable
from core.identity import Verifier
from core.settings import Settings
from repository.opening import open_repository
from repository.watch import Watch

KEPT_S = 10.0
"""A key that was revoked is refused after this."""
AWAY_S = 1.0
"""A repository that did not answer is asked again after this."""


class FetchedKeys:
    """Called, it gives the verifier of the last `KEPT_S` seconds. From any thread that runs no event loop. Blocks.
    Raises Unavailable where the repository does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._verifier = Verifier()
        self._away: str | None = None
        self._until = 0.0
        self._turn = threading.Lock()

    def __call__(self) -> Verifier:
        with self._turn:
            if time.monotonic() > self._until:
                self._away = None
                try:
                    asyncio.run(self._fetch())
                    self._until = time.monotonic() + KEPT_S
                except Unavailable as error:
                    self._away = error.message
                    self._until = time.monotonic() + AWAY_S
            if self._away is not None:
                raise Unavailable(self._away)
            return self._verifier

    async def _fetch(self) -> None:
        store, _ = await open_repository(self._settings)
        try:
            watch = Watch(store, self._settings.poll_interval_s)
            await watch.refresh()
            self._verifier.replace(watch.catalog.credentials())
        finally:
            await store.close()
