"""Every implementation of the store and of the artifacts, one param each: a new one joins here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from repository.artifacts import FileArtifacts
from repository.sqlite import SqliteStore
from repository.store import Artifacts, Store
from tests.repository.scripted import Bench, bench_of


@pytest.fixture(params=["sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = await SqliteStore.open(tmp_path / "records.sqlite")
    yield opened
    await opened.close()


@pytest.fixture(params=["files"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    return FileArtifacts(tmp_path / "artifacts")


@pytest.fixture
async def bench(store: Store, artifacts: Artifacts) -> AsyncIterator[Bench]:
    """A repository with its commands, and a scripted worker that loads what is wanted."""
    async with bench_of(store, artifacts) as made:
        yield made
