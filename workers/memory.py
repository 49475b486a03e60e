"""Gives freed memory back to the system, and counts what a process holds."""

from __future__ import annotations

import contextlib
import ctypes

import psutil


def give_back() -> None:
    """Have the C library return its free pages (glibc; elsewhere it decides). Blocks for milliseconds, without the GIL.

    No full garbage collection: dropped models come back by reference counts, and one stops every thread for half a
    second where torch and scikit-learn are loaded.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident(pid: int) -> int:
    """Bytes of memory that a process and its descendants hold; 0 when it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_resident(member) for member in family)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
