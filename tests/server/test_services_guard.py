"""No server outlives a run of tests, however it ends, and what was left out is told. Each run here is a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.servers import processes
from tests.running import clean_environment

ROOT = Path(__file__).parents[2]
CONFTEST = """\
from tests.services import *
from tests.services import pytest_configure, pytest_configure_node, pytest_terminal_summary, pytest_unconfigure
"""
PREFIX = 'import os, signal, time\nfrom pathlib import Path\nTOLD = Path("told")\n'
SHARED = """
def test_first(toxiproxy, servers):
    with TOLD.open("a") as told:
        print(servers.place("toxiproxy").mark, servers.place("toxiproxy").running.birth.pid, file=told)

def test_second(toxiproxy, servers):
    test_first(toxiproxy, servers)
"""
WITHIN_S = 60


class Run:
    """A run of pytest on one file, in a folder of its own."""

    def __init__(self, folder: Path, tests: str, *options: str) -> None:
        self.folder = folder
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_it.py").write_text(PREFIX + tests)
        (folder / "pytest.ini").write_text("[pytest]\n")
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *options, "."]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={**clean_environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> str:
        out, _ = self.process.communicate(timeout=WITHIN_S)
        return out

    @property
    def servers(self) -> set[tuple[str, int]]:
        """(mark, process) of each server that a test of the run was given."""
        lines = (self.folder / "told").read_text().splitlines()
        return {(line.split()[0], int(line.split()[1])) for line in lines}


def all_gone(run: Run) -> bool:
    return all(
        not processes.family(None, mark) and processes.seen(pid) is None and not Path(mark).parents[2].exists()
        for mark, pid in run.servers
    )


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_run_shares_one_server_and_ends_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Each process of the run is given the same one; when the run has ended it is gone, and its folder with it."""
    run = Run(tmp_path, SHARED, *options)
    assert "2 passed" in run.end()
    assert len(run.servers) == 1
    assert all_gone(run)


@pytest.mark.parametrize("end", ["assert False", "os._exit(3)", "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"])
def test_a_run_that_fails_leaves_no_server(tmp_path: Path, end: str) -> None:
    """By a failing test, by an interpreter that is gone at once, by Ctrl-C."""
    run = Run(tmp_path, f"{SHARED}\n\ndef test_third():\n    {end}\n")
    run.end()
    assert run.process.returncode != 0
    assert processes.wait_until(lambda: all_gone(run), WITHIN_S)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_no_server(
    tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    """The process that leads the run ends in the middle of a test, without a chance to do anything."""
    run = Run(tmp_path, f"{SHARED}\n    TOLD.with_name('here').touch()\n    time.sleep(30)\n", *options)
    assert processes.wait_until((tmp_path / "here").exists, WITHIN_S)
    os.kill(run.process.pid, number)
    run.process.wait(WITHIN_S)
    assert processes.wait_until(lambda: all_gone(run), WITHIN_S)
    run.process.communicate(timeout=WITHIN_S)


MISSING = """
import pytest, tests.services
from core.errors import Unavailable
from server.servers.toxiproxy import Toxiproxy

class Nowhere(Toxiproxy):
    def obtain(self, say, may_install):
        raise Unavailable("toxiproxy is not to be had")

@pytest.fixture(autouse=True, scope="session")
def elsewhere():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.services, "family", lambda: (Nowhere(),))
        patch.setattr(tests.services, "may_install", lambda uid, environment: ALLOWED)
        yield

def test_one(toxiproxy): pass
def test_two(toxiproxy): pass
def test_three(): pass
"""


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    """Where nothing may be installed: at the end of the run, with the reason and how many tests it hit."""
    out = Run(tmp_path, "ALLOWED = False" + MISSING).end()
    assert "1 passed, 2 skipped" in out
    assert "left out" in out
    assert "2 tests: toxiproxy is not to be had" in out


def test_in_ci_nothing_is_left_out(tmp_path: Path) -> None:
    """There, and as root, a server that cannot be had is an error."""
    out = Run(tmp_path, "ALLOWED = True" + MISSING).end()
    assert "1 passed, 2 errors" in out
    assert "left out" not in out
