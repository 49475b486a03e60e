"""The last known catalog on disk: whole, believed for a stated time, and never a reason to fall over."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.snapshot import CONFIRM_S, Snapshot
from repository.catalog import Catalog, catalog
from repository.records import Alias, ApiKey, Deployment
from tests.repository.scripted import a_state, a_version

KEY = ApiKey(key_id="k", name="n", owner="o", role="predict", patterns=("m*",), digest="00" * 32, created=1.0)
MADE = catalog(
    7,
    [a_version("m", 1), a_version("m", 2)],
    [a_state("m", 1, "READY")],
    [Alias(model="m", alias="champion", version=1)],
    [KEY],
    [Deployment(model="m", replicas=2, max_replicas=4)],
)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def snapshot(tmp_path: Path, clock: Clock) -> Snapshot:
    return Snapshot(tmp_path / "snapshot", 60.0, clock)


async def test_what_was_kept_is_loaded(snapshot: Snapshot, tmp_path: Path) -> None:
    """Versions, states, aliases, keys and deployments; in a file for the owner's eyes."""
    await snapshot.keep(MADE)
    assert snapshot.load() == MADE
    assert stat.S_IMODE((tmp_path / "snapshot").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]


def test_nothing_kept_is_nothing(snapshot: Snapshot) -> None:
    assert snapshot.load() is None


@pytest.mark.parametrize(("age", "believed"), [(0.0, True), (60.0, True), (61.0, False), (-1.0, False)])
async def test_it_is_believed_for_its_time(snapshot: Snapshot, clock: Clock, age: float, believed: bool) -> None:
    """One from the future is not believed either: nobody knows how old that is."""
    await snapshot.keep(MADE)
    clock.now += age
    assert (snapshot.load() is not None) == believed


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 100])
def test_a_damaged_file_is_no_file(snapshot: Snapshot, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "snapshot").write_bytes(content)
    assert snapshot.load() is None


async def test_a_torn_file_is_no_file(snapshot: Snapshot, tmp_path: Path) -> None:
    """Cut anywhere."""
    await snapshot.keep(MADE)
    whole = (tmp_path / "snapshot").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "snapshot").write_bytes(whole[:length])
        assert snapshot.load() is None


async def test_a_folder_that_takes_nothing_is_only_logged(tmp_path: Path, clock: Clock) -> None:
    """And tried again: it stays due."""
    snapshot = Snapshot(tmp_path / "missing" / "snapshot", 60.0, clock)
    await snapshot.keep(MADE)
    assert snapshot.due(MADE)


async def test_it_is_due_when_something_changed_or_much_time_went(snapshot: Snapshot, clock: Clock) -> None:
    """So that its age is that of the last contact, not of the last change."""
    assert snapshot.due(MADE)
    await snapshot.keep(MADE)
    assert not snapshot.due(MADE)
    assert snapshot.due(Catalog(8))
    clock.now += CONFIRM_S + 1
    assert snapshot.due(MADE)
