"""Processes that outlive the command that started them: found again, and stopped, by what they carry.

A number in a file is no proof: numbers are reused, and a server's own children (a port mapper that makes itself a
daemon, workers that rename themselves) have other ones. So a server is started in a session of its own, with a mark in
its environment that its descendants inherit. Its *family* is every process that carries the mark or belongs to that
session. `seen` and `Birth` come from Linux's /proc; the decision whose a process is, is pure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
MARK = "PENSTOCK_SERVICE_MARK"
FOREIGN = ("PENSTOCK_", "RAY_", "RABBITMQ_", "ERL_", "LD_PRELOAD", "NOTIFY_SOCKET")
"""Beginnings of variables that a server must not take over from the shell of whoever starts it."""
LAST_GRACE_S = 5.0
POLL_S = 0.1


class Birth(NamedTuple):
    """A process that cannot be taken for another: `started` in clock ticks after the boot named by `boot`."""

    pid: int
    started: int
    boot: str


class Seen(NamedTuple):
    """A process as it is now. `mark`: what it carries, '' where it shows none (it may have renamed itself)."""

    pid: int
    session: int
    started: int
    mark: str
    name: str


def belongs(process: Seen, leader: Birth | None, mark: str, boot: str, others: Mapping[int, Seen]) -> bool:
    """Whether `process` is the leader or one of its descendants. `others`: all that run now, by their number.

    What shows a mark is judged by it. The rest belongs by its session: the kernel gives a number to nobody else while a
    session of that number has members, so whoever has the leader's number and not its birth leads another session.
    """
    if process.mark:
        return process.mark == mark
    if leader is None or boot != leader.boot:
        return False
    if process.session != leader.pid or process.started < leader.started:
        return False
    now_there = others.get(leader.pid)
    return now_there is None or now_there.started == leader.started


def alive(process: Birth) -> bool:
    """Whether it has not ended yet."""
    now = seen(process.pid)
    return now is not None and now.started == process.started and boot_id() == process.boot


def family(leader: Birth | None, mark: str) -> list[Seen]:
    """The leader and its descendants that run now; the leader first."""
    everybody = running()
    boot = boot_id()
    ours = [process for process in everybody.values() if belongs(process, leader, mark, boot, everybody)]
    return sorted(ours, key=lambda process: (leader is None or process.pid != leader.pid, process.pid))


def running() -> dict[int, Seen]:
    """Every process that this user may look at, but for those that have ended and are not yet collected."""
    found = (seen(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def seen(pid: int) -> Seen | None:
    """The process of that number as it is now; None where there is none, or it is another user's."""
    entry = PROC / str(pid)
    try:
        if entry.stat().st_uid != os.getuid():
            return None
        before, _, after = (entry / "stat").read_text().rpartition(") ")
        fields = after.split()
        if fields[0] in "ZX":
            return None
        return Seen(
            pid=pid,
            session=int(fields[3]),
            started=int(fields[19]),
            mark=_mark((entry / "environ").read_bytes()),
            name=before.partition(" (")[2],
        )
    except (OSError, IndexError, ValueError):
        return None  # it ended while it was looked at


def _mark(environ: bytes) -> str:
    wanted = f"{MARK}=".encode()
    return next((item[len(wanted) :].decode() for item in environ.split(b"\0") if item.startswith(wanted)), "")


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """What of `environment` a server may see."""
    return {name: value for name, value in environment.items() if not name.startswith(FOREIGN)}


def spawn(argv: Iterable[str], environment: Mapping[str, str], mark: str, folder: Path, log: Path) -> Birth:
    """Start a program in a session of its own, its output appended to `log`, and let go of it: nobody here is its
    parent. One that cannot be run says so in the log."""
    script = 'log=$1; shift; umask 077; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'
    shell = subprocess.run(
        ["sh", "-c", script, "sh", str(log), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**inherited(os.environ), **environment, MARK: mark},
        cwd=folder,
        check=True,
    )
    pid = int(shell.stdout)
    now = seen(pid)
    return Birth(pid, now.started if now else 0, boot_id())


def send(process: Seen, number: signal.Signals) -> None:
    """Signal it, unless it has ended: another that got its number meanwhile is never hit."""
    with suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(process.pid)
        try:
            now = seen(process.pid)
            if now is not None and now.started == process.started:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def stop(leader: Birth | None, mark: str, within_s: float) -> list[str]:
    """End the family: the leader is asked and given `within_s`, then what is left, then no one is asked.

    Returns the names of those that had to be killed.
    """
    if leader is not None:
        _ask(process for process in family(leader, mark) if process.pid == leader.pid)
        wait_until(lambda: not alive(leader), within_s)
    _ask(family(leader, mark))
    if wait_until(lambda: not family(leader, mark), LAST_GRACE_S):
        return []
    killed = family(leader, mark)
    for process in killed:
        send(process, signal.SIGKILL)
    wait_until(lambda: not family(leader, mark), LAST_GRACE_S)
    return [f"{process.name} ({process.pid})" for process in killed]


def _ask(processes: Iterable[Seen]) -> None:
    for process in processes:
        send(process, signal.SIGTERM)
        send(process, signal.SIGCONT)  # one that is paused would not hear


def wait_until(condition: Callable[[], bool], within_s: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
