"""The last known catalog on disk: whole, believed for a stated time, and never a reason to fall over."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.snapshot import CONFIRM_S, Snapshot, since_boot
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
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
def up() -> Clock:
    return Clock(50.0)


@pytest.fixture
def snapshot(tmp_path: Path, clock: Clock, up: Clock) -> Snapshot:
    return Snapshot(tmp_path / "snapshot", 60.0, clock, up, "this boot")


async def test_what_was_kept_is_loaded(snapshot: Snapshot, tmp_path: Path) -> None:
    """Versions, states, aliases, keys and deployments; in a file for the owner's eyes."""
    await snapshot.keep(MADE)
    assert snapshot.load() == MADE
    assert stat.S_IMODE((tmp_path / "snapshot").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]


def test_nothing_kept_is_nothing(snapshot: Snapshot) -> None:
    assert snapshot.load() is None


AGES = [(0.0, True), (60.0, True), (61.0, False), (-1.0, True), (-60.0, True), (-61.0, False)]


@pytest.mark.parametrize("stepped", [0.0, -3600.0, 3600.0])
@pytest.mark.parametrize(("age", "believed"), AGES)
async def test_it_is_believed_for_its_time(
    snapshot: Snapshot, clock: Clock, up: Clock, age: float, believed: bool, stepped: float
) -> None:
    """As long as the host is up its age is counted from the boot, whatever is done to the wall clock."""
    await snapshot.keep(MADE)
    up.now += age
    clock.now += age + stepped
    assert (snapshot.load() is not None) == believed


@pytest.mark.parametrize(("age", "believed"), AGES)
async def test_after_a_boot_the_wall_clock_counts(
    snapshot: Snapshot, clock: Clock, tmp_path: Path, age: float, believed: bool
) -> None:
    """One that seems to be of the future is new, for the clock was set back; but not from how far one likes."""
    await snapshot.keep(MADE)
    clock.now += age
    for up in (0.0, 1e9):
        later = Snapshot(tmp_path / "snapshot", 60.0, clock, Clock(up), "another boot")
        assert (later.load() is not None) == believed


async def test_the_clocks_of_this_host_do() -> None:
    """They run, and the boot has a name."""
    assert 0 < since_boot() <= since_boot()


async def test_one_that_an_earlier_release_kept_is_believed(snapshot: Snapshot, clock: Clock, tmp_path: Path) -> None:
    """It knows the wall clock alone."""
    await snapshot.keep(MADE)
    kept = msgspec.msgpack.decode((tmp_path / "snapshot").read_bytes())
    del kept["boot"], kept["up"]
    (tmp_path / "snapshot").write_bytes(msgspec.msgpack.encode(kept))
    assert snapshot.load() == MADE
    clock.now += 61.0
    assert snapshot.load() is None


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 100])
def test_a_damaged_file_is_no_file(snapshot: Snapshot, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "snapshot").write_bytes(content)
    assert snapshot.load() is None


async def changed(snapshot: Snapshot, file: Path, changes: Mapping[str, object]) -> None:
    await snapshot.keep(MADE)
    file.write_bytes(msgspec.msgpack.encode(msgspec.msgpack.decode(file.read_bytes()) | dict(changes)))


WRONG: list[Mapping[str, object]] = [
    {"revision": -7},
    *[{name: value} for name in ("up", "confirmed") for value in (math.nan, math.inf, -math.inf)],
    {"up": math.nan, "boot": "another boot"},
    {"deployments": [{"model": "m", "replicas": -5}]},
    {"keys": [msgspec.to_builtins(KEY) | {"digest": "zz"}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_what_no_gateway_has_kept_is_not_believed(
    snapshot: Snapshot, tmp_path: Path, wrong: Mapping[str, object]
) -> None:
    """A time that is none would never be old."""
    await changed(snapshot, tmp_path / "snapshot", {"revision": 8})
    assert snapshot.load() is not None
    await changed(snapshot, tmp_path / "snapshot", wrong)
    with capture_logs() as logs:
        assert snapshot.load() is None
    assert [line["event"] for line in logs] == ["snapshot not readable"]


def test_what_is_no_file_is_not_waited_for(snapshot: Snapshot, tmp_path: Path) -> None:
    """A pipe that nobody writes to, a folder."""
    os.mkfifo(tmp_path / "snapshot")
    assert snapshot.load() is None
    (tmp_path / "snapshot").unlink()
    (tmp_path / "snapshot").mkdir()
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


async def test_it_is_due_when_something_changed_or_much_time_went(snapshot: Snapshot, clock: Clock, up: Clock) -> None:
    """So that its age is that of the last contact, not of the last change. The wall clock may be set meanwhile."""
    assert snapshot.due(MADE)
    await snapshot.keep(MADE)
    assert not snapshot.due(MADE)
    assert snapshot.due(Catalog(8))
    clock.now -= 3600.0
    up.now += CONFIRM_S + 1
    assert snapshot.due(MADE)
