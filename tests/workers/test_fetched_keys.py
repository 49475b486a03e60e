"""Keys for a process that keeps no connection to the repository."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from core.errors import Unauthenticated, Unavailable
from core.identity import OBSERVE
from core.settings import Settings
from repository.commands import Commands
from repository.opening import open_repository
from repository.watch import Watch
from tests.repository.scripted import ROOT
from workers import fetched_keys
from workers.fetched_keys import FetchedKeys

T = TypeVar("T")


def written(settings: Settings, work: Callable[[Commands], Awaitable[T]]) -> T:
    """Do something to the repository, from a process of its own as it were."""

    async def run() -> T:
        store, artifacts = await open_repository(settings)
        try:
            watch = Watch(store, settings.poll_interval_s)
            await watch.refresh()
            return await work(Commands(store, artifacts, settings, watch))
        finally:
            await store.close()

    return asyncio.run(run())


def test_a_key_is_known_until_it_is_revoked(mongo_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched is kept for a moment: a scrape each second is no question each second."""
    base, _, database = mongo_url.rpartition("/")
    settings = Settings(home=tmp_path, mongo_url=f"{base}/", mongo_database=database)
    issued = written(settings, lambda commands: commands.create_key("prometheus", role=OBSERVE))
    keys = FetchedKeys(settings)
    secret = issued.secret.encode()
    assert keys().verify(secret).role == OBSERVE
    written(settings, lambda commands: commands.revoke_key(issued.key.key_id, ROOT))
    assert keys().verify(secret).role == OBSERVE
    monkeypatch.setattr(fetched_keys, "KEPT_S", 0.0)
    keys._until = 0.0
    with pytest.raises(Unauthenticated):
        keys().verify(secret)


def test_without_a_repository_nobody_is_let_in(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, mongo_url="mongodb://127.0.0.1:1/")
    with pytest.raises(Unavailable):
        FetchedKeys(settings)()
