"""What a server of many processes uses: CPU while it is measured, memory after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import psutil

from loadtests.processes import family

MIB = 1 << 20


class Memory(NamedTuple):
    """MiB. `rss` counts a page once for each process that maps it, `pss` once."""

    rss: float
    pss: float


def cpu_by_process(roots: Iterable[int]) -> dict[int, float]:
    """User and system seconds so far, by process id, of those processes and all that they have started."""
    return {pid: times.user + times.system for pid, times in _seen(roots, lambda process: process.cpu_times())}


def cpu_between(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds used between two looks; what ended in between is lost, what began counts whole."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def memory(roots: Iterable[int]) -> Memory:
    seen = [told for _, told in _seen(roots, lambda process: process.memory_full_info())]
    return Memory(sum(told.rss for told in seen) / MIB, sum(told.pss for told in seen) / MIB)


def _seen(roots: Iterable[int], look: Callable[[psutil.Process], Any]) -> Iterator[tuple[int, Any]]:
    """What is seen of each process of those trees, once; one that ends meanwhile is left out."""
    done: set[int] = set()
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in family(root):
                if process.pid not in done:
                    done.add(process.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        yield process.pid, look(process)
