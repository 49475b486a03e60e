"""A child process: what it can see, what happens when it dies, hangs, hogs or lies, and that nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from structlog.typing import EventDict

from core.errors import InvalidRequest, ModelFailed
from core.settings import Settings
from gateway.transports.process import Process
from repository.records import READY, UNAVAILABLE, TensorSpec, Version
from tests.running import alive
from tests.workers.samples import array_of, batch_of, failure_in, python_file, rows, version
from workers.child import FIRST_DELAY_S, STEADY_S, Backoff, Child
from workers.life import environment
from workers.messages import Batch, Reply

BOUND_S = 30.0
TEXT = TensorSpec("told", "BYTES", (-1,))

ECHO = """
class Model:
    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""

MISBEHAVING = """
import os, socket, sys, time

def ours():
    for number in range(3, 1024):
        try:
            return socket.socket(fileno=os.dup(number))
        except OSError:
            continue

class Model:
    def predict(self, inputs):
        what = int(inputs["x"][0, 0])
        if what == 1:
            os.kill(os.getpid(), 9)
        if what == 2:
            time.sleep(1000)
        if what == 3:
            ours().sendall(b"\\xff\\xff\\xff\\xff" + b"garbage" * 100)
            time.sleep(1000)
        if what == 4:
            ours().sendall(b"\\x10\\x00\\x00\\x00" + b"\\x00" * 16)
            time.sleep(1000)
        if what == 5:
            hoard = bytearray(1 << 30)
            hoard[::4096] = bytes(1 for _ in range(len(hoard) // 4096))
            time.sleep(1000)
        if what in (7, 8, 9):
            from workers.messages import Output, Reply, Timing, encode
            lie = Output("y", "FP32", (1, 4), b"") if what == 7 else Output("z", "FP32", (1, 4), bytes(16))
            number = 999 if what == 9 else 100
            ours().sendall(b"".join(encode(Reply(number, [[lie]], Timing()))))
            time.sleep(1000)
        if what in (10, 11):
            from workers.messages import Failure, Output, Reply, Timing, encode
            good = [Output("y", "FP32", (1, 4), bytes(16))]
            result = Failure("unauthenticated", "who are you?") if what == 10 else good
            ours().sendall(b"".join(encode(Reply(100, [result], Timing(compute_infer=-(what == 11))))))
            time.sleep(1000)
        if what == 6:
            print("x" * 100_000)
            for at in range(100_000):
                print("line", at)
        return {"y": inputs["x"] * 2}
"""


class Seen:
    """A child with its transport, and the states it went through."""

    def __init__(self, child: Child, transport: Process, states: list[tuple[str, str]]) -> None:
        self.child = child
        self.transport = transport
        self.states = states
        self._numbers = itertools.count(100)

    def send(self, batch: Batch) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.transport.send(batch, future.set_result)
        return future

    async def ask(self, *values: float) -> Reply:
        batch = batch_of(*(rows(value) for value in values), number=next(self._numbers))
        return await asyncio.wait_for(self.send(batch), BOUND_S)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not true():
                await asyncio.sleep(0.005)

    async def until_back(self) -> None:
        await self.until(lambda: self.transport.window)


@asynccontextmanager
async def living(
    folder: Path, source: str, settings: Settings | None = None, patience: float = 10.0, made: Version | None = None
) -> AsyncIterator[Seen]:
    states: list[tuple[str, str]] = []
    settings = settings or Settings(compute_threads=1)
    made = made or version(kind="python", entry="Model")
    child = Child(made, python_file(folder, source), None, settings, lambda _, *said: states.append(said))
    await child.start()
    seen = Seen(child, Process(child, 2, patience, drain=1.0), states)
    try:
        await seen.until_back()
        yield seen
    finally:
        await seen.transport.close()
        await child.close()


async def works(seen: Seen) -> None:
    await seen.until_back()
    assert array_of((await seen.ask(21)).results[0])[0, 0] == 42


async def test_it_answers_and_leaves_no_trace(tmp_path: Path) -> None:
    """Its folder and its process go when it is closed."""
    async with living(tmp_path, ECHO) as seen:
        await works(seen)
        pid = seen.child.pid
        assert pid is not None
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
    assert not psutil.pid_exists(pid)
    assert not folder.exists()


LOOK = """
import json, os, stat
import numpy as np

def kind(fd):
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError:
        return 0

class Model:
    def predict(self, inputs):
        told = {
            "environment": dict(os.environ),
            "uid": os.getresuid(),
            "groups": os.getgroups(),
            "session": os.getsid(0) == os.getpid(),
            "kinds": [kind(int(fd)) for fd in os.listdir("/proc/self/fd")],
            "cwd": oct(os.stat(".").st_mode),
            "owner": os.stat(".").st_uid,
            "core": __import__("resource").getrlimit(4),
        }
        return {"told": np.array([json.dumps(told)] * len(inputs["x"]), dtype=object)}
"""


async def test_it_sees_nothing_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of its environment, no file, socket or pipe of it but its own three and its connection."""
    monkeypatch.setenv("PENSTOCK_API_KEY", "psk_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    secret = os.open(tmp_path / "database", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    made = version(kind="python", entry="Model", outputs=[TEXT])
    async with living(tmp_path, LOOK, made=made) as seen:
        told = json.loads(array_of((await seen.ask(1)).results[0])[0])
        folder = Path(os.readlink(f"/proc/{seen.child.pid}/cwd"))
        assert told["environment"].items() <= environment(folder, 1).items() | {("LC_CTYPE", "C.UTF-8")}
    os.close(secret)
    regular, sockets = 0o100000, 0o140000
    assert regular not in told["kinds"]
    assert told["kinds"].count(sockets) == 1
    assert told["session"]
    assert told["cwd"] == "0o40700"
    assert told["owner"] == told["uid"][0]
    assert told["core"] == [0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a uid away")
async def test_as_root_it_has_a_uid_of_its_own(tmp_path: Path) -> None:
    """No way back, no groups, and another one than its neighbour's."""
    made = version(kind="python", entry="Model", outputs=[TEXT])
    async with living(tmp_path, LOOK, made=made) as one, living(tmp_path, LOOK, made=made) as other:
        told = [json.loads(array_of((await seen.ask(1)).results[0])[0]) for seen in (one, other)]
    uids = [uid for seen in told for uid in set(seen["uid"])]
    assert len(uids) == 2
    assert min(uids) >= 60_000
    assert uids[0] != uids[1]
    assert [seen["groups"] for seen in told] == [[], []]


READ = """
class Model:
    def predict(self, inputs):
        import sqlite3, encodings.idna, xml.dom.minidom, sklearn  # not imported before: the library is still there
        try:
            open(%r).read()
        except OSError:
            return {"y": inputs["x"] * 0}
        return {"y": inputs["x"]}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a uid away")
async def test_as_root_it_cannot_read_the_servers_files_yet_imports_work(tmp_path: Path) -> None:
    secret = tmp_path / "client.toml"
    secret.write_text("api_key")
    secret.chmod(0o600)
    async with living(tmp_path, READ % str(secret)) as seen:
        assert array_of((await seen.ask(1)).results[0])[0, 0] == 0


async def test_killed_mid_batch_its_callers_hear_and_it_comes_back(tmp_path: Path) -> None:
    """A typed error at once for all that is in flight, a window of 0 meanwhile; the other model notices nothing."""
    (tmp_path / "other").mkdir()
    async with living(tmp_path, MISBEHAVING) as seen, living(tmp_path / "other", ECHO) as other:
        before = seen.child.pid
        hanging, queued = seen.send(batch_of(rows(2), number=1)), seen.send(batch_of(rows(0), number=2))
        beside = [asyncio.ensure_future(other.ask(at)) for at in range(5)]
        await asyncio.sleep(0)
        assert before is not None
        os.kill(before, signal.SIGKILL)
        for future in (hanging, queued):
            reply = await asyncio.wait_for(future, BOUND_S)
            assert failure_in(reply.results[0]).reason == "worker_lost"
        assert seen.transport.window == 0
        assert failure_in((await seen.ask(0)).results[0]).reason == "worker_lost"
        for at, answer in enumerate(beside):
            assert array_of((await answer).results[0])[0, 0] == 2 * at
        await works(seen)
        assert seen.child.pid != before
        assert [state for state, _ in seen.states] == [UNAVAILABLE, READY]
        assert "signal 9" in seen.states[0][1]
        assert "started again 1 times" in seen.states[1][1]
        assert other.states == []


TRICKS = {
    1: "kills itself",
    3: "claims a frame of 4 GiB",
    4: "sends nonsense",
    7: "sends less data than its shape says",
    8: "answers with another output",
    9: "answers what was not asked",
    10: "gives a reason that is not its to give",
    11: "took less than no time",
}


@pytest.mark.parametrize("what", TRICKS, ids=TRICKS.get)
async def test_whatever_it_does_its_callers_get_an_error_and_it_comes_back(tmp_path: Path, what: int) -> None:
    async with living(tmp_path, MISBEHAVING) as seen:
        reply = await seen.ask(what)
        assert failure_in(reply.results[0]).reason == "worker_lost"
        await works(seen)


async def test_one_that_hangs_is_killed(tmp_path: Path) -> None:
    """When nobody aboard can use an answer any more, and not sooner than the patience it has."""
    async with living(tmp_path, MISBEHAVING, patience=0.1) as seen:
        reply = await seen.ask(2)
        assert failure_in(reply.results[0]).reason == "worker_lost"
        await works(seen)
        assert "did not answer" in seen.states[0][1]


async def test_one_that_hoards_memory_is_killed(tmp_path: Path) -> None:
    async with living(tmp_path, MISBEHAVING, Settings(compute_threads=1, child_memory_bytes=400 << 20)) as seen:
        reply = await seen.ask(5)
        assert failure_in(reply.results[0]).reason == "worker_lost"
        await works(seen)
        assert "bytes of memory" in seen.states[0][1]


async def test_what_it_prints_is_logged_within_bounds(tmp_path: Path, logged: list[EventDict]) -> None:
    """Lines cut, floods held back; the model goes on once the pipe is read again."""
    async with living(tmp_path, MISBEHAVING) as seen:
        future = seen.send(batch_of(rows(6)))
        await seen.until(lambda: any("line" in str(entry.get("line")) for entry in logged))
        lines = [entry["line"] for entry in logged if entry["event"] == "child"]
        assert max(map(len, lines)) <= 8000
        assert len(lines) < 10_000
        assert seen.child.pid is not None
        os.kill(seen.child.pid, signal.SIGKILL)
        await asyncio.wait_for(future, BOUND_S)


async def refused(folder: Path, source: str, error: type[Exception], said: str, timeout: float = 30.0) -> None:
    child = Child(
        version(kind="python", entry="Model"),
        python_file(folder, source),
        None,
        Settings(compute_threads=1, load_timeout_s=timeout),
        lambda *_: None,
    )
    with pytest.raises(error, match=said):
        await asyncio.wait_for(child.start(), BOUND_S)
    assert child.pid is None


async def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    await refused(tmp_path, "import no_such_thing", InvalidRequest, "no_such_thing")


async def test_a_process_that_dies_while_it_loads_is_told(tmp_path: Path) -> None:
    await refused(tmp_path, "import os; os._exit(7)", ModelFailed, "exit code 7")


async def test_a_process_that_lies_while_it_loads_is_told(tmp_path: Path) -> None:
    lie = MISBEHAVING.split("class Model")[0] + "ours().sendall(bytes([0, 0, 0, 255]) * 9); time.sleep(1000)"
    await refused(tmp_path, lie, ModelFailed, "nonsense")


async def test_a_load_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    await refused(tmp_path, "import time; time.sleep(1000)", ModelFailed, "in time", timeout=2.0)


@asynccontextmanager
async def server_with_a_child(folder: Path) -> AsyncIterator[tuple[subprocess.Popen[str], int]]:
    """Another process that has a child; yields it and the child's pid."""
    program = f"""
        import asyncio
        from core.settings import Settings
        from pathlib import Path
        from tests.workers.samples import version
        from workers.child import Child

        async def main():
            child = Child(version(kind="python", entry="Model"), Path({str(python_file(folder, ECHO))!r}), None,
                          Settings(compute_threads=1), lambda *_: None)
            await child.start()
            print(child.pid, flush=True)
            await asyncio.sleep(1000)

        asyncio.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield process, int(await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), BOUND_S))
    finally:
        process.kill()
        process.communicate()


async def test_it_dies_with_its_server(tmp_path: Path) -> None:
    """Also when that is killed and can tell nobody."""
    async with server_with_a_child(tmp_path) as (server, pid):
        child = psutil.Process(pid)
        server.kill()
        async with asyncio.timeout(BOUND_S):
            while alive(child):
                await asyncio.sleep(0.01)


def test_the_back_off_doubles_up_to_its_limit_and_forgets_after_a_long_life() -> None:
    backoff = Backoff(longest=1.0)
    assert [backoff.after(0) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.after(STEADY_S) == FIRST_DELAY_S
    assert backoff.starts == 7
