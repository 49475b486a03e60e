"""What of the machine this process may have: all of it, or less where a control group (a container) says so."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups."""


def memory() -> int:
    """Bytes of memory that this process and its children may hold together at the most."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return smallest(machine, map(_text, limit_files(_text(Path("/proc/self/cgroup")))))


def limit_files(memberships: str, groups: Path = GROUPS) -> Iterator[Path]:
    """The files that may limit a process with these memberships, the text of its /proc/<pid>/cgroup.

    One of each group up to the root, since a parent's limit holds for its children; and a container may see its own
    group as the root, under whatever path it is told to be a member of.
    """
    for line in memberships.splitlines():
        number, controllers, path = line.split(":", 2)
        group = PurePosixPath("/", path)
        for each in (group, *group.parents):
            below = each.relative_to("/")
            if number == "0":  # version 2; beside version 1 it is mounted one folder down
                yield groups / below / "memory.max"
                yield groups / "unified" / below / "memory.max"
            elif "memory" in controllers.split(","):
                yield groups / "memory" / below / "memory.limit_in_bytes"


def smallest(machine: int, limits: Iterable[str]) -> int:
    """The least of the machine's bytes and what stands in files of limits; one without a number ("max") is none."""
    return min([machine, *(int(limit) for limit in map(str.strip, limits) if limit.isdecimal())])


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
