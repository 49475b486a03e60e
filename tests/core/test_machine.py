"""What of the machine a process may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import machine
from core.machine import limit_files, smallest

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memberships", "files"),
    [
        ("0::/\n", ["memory.max", "unified/memory.max"]),
        (
            "0::/app.slice/web:1\n",
            [
                "app.slice/web:1/memory.max",
                "unified/app.slice/web:1/memory.max",
                "app.slice/memory.max",
                "unified/app.slice/memory.max",
                "memory.max",
                "unified/memory.max",
            ],
        ),
        (
            "5:cpu,memory:/docker/3f\n4:cpuset:/\n1:name=systemd:/memory\n",
            [f"memory/{below}memory.limit_in_bytes" for below in ("docker/3f/", "docker/", "")],
        ),
        ("", []),
    ],
)
def test_where_limits_stand(memberships: str, files: list[str]) -> None:
    """In each group from the process's own to the root, of version 2, of version 1, and of both side by side."""
    assert list(limit_files(memberships, Path("/g"))) == [Path("/g") / file for file in files]


@pytest.mark.parametrize(
    ("limits", "least"),
    [
        ([], 8 * GIB),
        (["max\n", ""], 8 * GIB),
        (["max\n", f"{2 * GIB}\n", f"{3 * GIB}\n"], 2 * GIB),
        (["9223372036854771712\n"], 8 * GIB),
    ],
)
def test_the_smallest_limit_counts(limits: list[str], least: int) -> None:
    """The machine's own memory among them; a group without a limit says `max`, or an absurd number."""
    assert smallest(8 * GIB, limits) == least


def test_a_containers_limit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the files as they stand, also where the group's path is that of the machine outside."""
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
    told = {"/proc/self/cgroup": "7:memory:/docker/3f\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000\n"}
    monkeypatch.setattr(machine, "_text", lambda file: told.get(str(file), ""))
    assert machine.memory() == 1_000_000
