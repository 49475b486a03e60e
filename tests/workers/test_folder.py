"""Private folders of children, and the sweep of those that a dead server left."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from server.servers import ray_head
from server.servers.places import Place
from workers.folder import PREFIX, YOUNG_S, Folder, sweep


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(path: Path) -> Path:
    os.utime(path, (time.time() - 2 * YOUNG_S,) * 2)
    return path


def test_a_folder_is_entered_by_its_owner_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"model")
    folder = Folder(0)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.copy(source, "artifact").read_bytes() == b"model"
    assert folder.write("example", b"{}").stat().st_mode & 0o777 == 0o400
    folder.remove()
    assert not folder.path.exists()


def test_the_sweep_takes_what_nobody_holds(tmp_path: Path) -> None:
    """Old and unlocked; never one in use, a young one, a link, or what is named otherwise."""
    held = Folder(0)
    aged(held.path)
    left, young, other = tmp_path / f"{PREFIX}left", tmp_path / f"{PREFIX}young", tmp_path / "other"
    for path in (left, young, other):
        path.mkdir()
        (path / "file").touch()
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(other)
    aged(left)
    aged(other)
    sweep()
    assert not left.exists()
    assert all(path.exists() for path in (held.path, young, other / "file", link))
    held.remove()


def test_the_sweep_leaves_the_sessions_of_ray(tmp_path: Path) -> None:
    """They stand in the same folder where the path to the server's own is long; without them its head is lost."""
    place = Place(tmp_path / ("deep" * 20), "ray")
    place.make()
    sessions = ray_head._scratch(place)
    assert sessions.parent == tmp_path
    sessions.mkdir()
    aged(sessions)
    sweep()
    assert sessions.exists()
