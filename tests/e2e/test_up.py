"""`penstock up` as a process: what scripts may rely on when it starts, when it cannot, and when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import stat
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import penstock
import pytest
from penstock.errors import ServerFailed

from tests.e2e.artifacts import PYTHON, SIGNATURES
from tests.gateway.wire import Wire, post
from tests.graphs import identity
from tests.running import COMMAND, RunningServer, answers, clean_environment

ROOT = Path(__file__).parents[2]


class Process:
    """`penstock up` on a home, without the samples; killed at the end whatever happened."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        ours = {"home": home, "http_port": 0, "grpc_port": 0, "samples": "false"} | settings
        variables = {f"PENSTOCK_{name.upper()}": str(value) for name, value in ours.items()}
        self.process = subprocess.Popen(
            [COMMAND, "up"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment() | variables,
            cwd=ROOT,
            start_new_session=True,
        )

    @property
    def client(self) -> dict[str, str]:
        return tomllib.loads((self.home / "client.toml").read_text())

    def ready(self) -> Process:
        until(lambda: self.process.poll() is not None or self._answers(), 60)
        assert self.process.poll() is None, self.process.communicate()
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, KeyError, tomllib.TOMLDecodeError):
            return answers(self.client["url"])
        return False

    def signal(self, number: int) -> None:
        """To the process group, as a terminal and `make` send it."""
        os.killpg(self.process.pid, number)

    def ended(self, within: float = 40) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=within)
        return self.process.returncode, out.decode(), err.decode()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(home: Path = tmp_path / "home", **settings: Any) -> Process:
        started.append(Process(home, **settings))
        return started[-1]

    yield begin
    for process in started:
        process.close()


def until(found: Callable[[], Any], within: float) -> Any:
    """Wait for a condition of another process, by looking."""
    end = time.monotonic() + within
    while not (answer := found()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)
    return answer


# --- starting -----------------------------------------------------------------------------------------------------


def test_client_toml_stands_before_ready(start: Start) -> None:
    """Mode 0600, with the four members; the home's own folder is closed to others."""
    process = start()
    until((process.home / "client.toml").exists, 60)
    mode = stat.S_IMODE((process.home / "client.toml").stat().st_mode)
    told = process.client
    process.ready()
    assert mode == 0o600
    assert stat.S_IMODE(process.home.stat().st_mode) == 0o700
    assert set(told) == {"url", "grpc", "control", "api_key"}
    assert told["url"] == told["control"]
    assert told == process.client
    with penstock.connect(told["url"], api_key=told["api_key"]) as ps:
        assert ps.whoami() | {"name": ""} == {
            "name": "",
            "owner": "admin",
            "role": "admin",
            "models": ["*"],
            "grants": ["code"],
        }


def test_both_samples_are_ready_when_the_server_is(running_server: RunningServer) -> None:
    """And the line to try works."""
    digit = str(running_server.home / "digit.json")
    command = [str(COMMAND), "predict", "digits", "--input", digit]
    done = subprocess.run(command, env=running_server.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with penstock.connect(running_server.url, api_key=running_server.api_key) as ps:
        assert {"digits", "iris"} <= {each["name"] for each in ps.models() if each["versions"][0]["state"] == "READY"}


def test_a_server_is_killed_and_started_again(start: Start, tmp_path: Path) -> None:
    """No child outlives it. The next start keeps the key and the models, those that bring code among them, and is
    ready in seconds."""
    (tmp_path / "models.py").write_text(PYTHON)
    first = start().ready()
    before = first.client
    with penstock.connect(before["url"], api_key=before["api_key"]) as ps:
        source = f"{tmp_path / 'models.py'}:Fragile"
        ps.push(source, "fragile", signature=SIGNATURES["Fragile"], allow_code=True)
        child = int(ps.predict("fragile", [[0]])[0, 0])
    os.kill(first.process.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{child}").exists(), 20)
    begun = time.monotonic()
    after = start().ready().client
    assert time.monotonic() - begun < 45
    assert after["api_key"] == before["api_key"]
    with penstock.connect(after["url"], api_key=after["api_key"]) as ps:
        assert int(ps.predict("fragile", [[0]])[0, 0]) != child


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_an_occupied_port(start: Start, which: str) -> None:
    """Exit 1 and one sentence that names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = start(**{f"{which}_port": port}).ended()
    assert (code, err.count("\n")) == (1, 1), err
    assert str(port) in err
    assert "Traceback" not in err


def test_a_second_server_on_one_home(start: Start, running_server: RunningServer) -> None:
    """Exit 1 and one sentence; the first goes on, its client.toml untouched."""
    told = (running_server.home / "client.toml").read_text()
    code, _, err = start(home=running_server.home).ended()
    assert (code, err.count("\n")) == (1, 1), err
    assert "another server" in err
    assert (running_server.home / "client.toml").read_text() == told
    assert answers(running_server.url)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("http_port", "99999"), ("log_level", "loud")],
)
def test_a_wrong_setting_is_named(start: Start, setting: str, value: str) -> None:
    code, _, err = start(**{setting: value}).ended()
    assert (code, err.count("\n")) == (1, 1), err
    assert f"PENSTOCK_{setting.upper()}" in err
    assert value in err


def test_a_home_that_cannot_be_made(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = start(home=tmp_path / "file" / "home").ended()
    assert (code, err.count("\n")) == (1, 1), err


def test_nobody_listens_to_what_it_prints(start: Start, tmp_path: Path) -> None:
    """Readers of stdout and stderr that have gone change nothing, neither for requests that are logged."""
    process = start()
    for stream in (process.process.stdout, process.process.stderr):
        assert stream is not None
        stream.close()
    process.ready()
    with penstock.connect(process.client["url"], api_key=process.client["api_key"]) as ps:
        (tmp_path / "identity.onnx").write_bytes(identity())
        assert ps.push(tmp_path / "identity.onnx", "echo")["state"] == "READY"
    process.signal(signal.SIGTERM)
    assert process.process.wait(40) == 0


def test_nobody_reads_what_it_prints(start: Start, tmp_path: Path) -> None:
    """A reader of stderr that is there and never reads holds up neither requests nor the stop."""
    (tmp_path / "models.py").write_text(PYTHON)
    process = start()
    assert process.process.stderr is not None
    fcntl.fcntl(process.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    process.ready()
    with penstock.connect(process.client["url"], api_key=process.client["api_key"], timeout=10) as ps:
        source = f"{tmp_path / 'models.py'}:Fragile"
        ps.push(source, "fragile", signature=SIGNATURES["Fragile"], allow_code=True)
        for _ in range(20):
            with pytest.raises(ServerFailed):
                ps.predict("fragile", [[1]])
        assert ps.predict("fragile", [[0]]).shape == (1, 1)
    process.signal(signal.SIGTERM)
    assert process.process.wait(40) == 0


def test_it_starts_without_stdout_and_stderr(tmp_path: Path) -> None:
    """As some supervisors start it."""
    ours = {"PENSTOCK_HOME": str(tmp_path / "home"), "PENSTOCK_HTTP_PORT": "0", "PENSTOCK_GRPC_PORT": "0"}
    process = subprocess.Popen(
        ["sh", "-c", f"exec {COMMAND} up <&- >&- 2>&-"],
        env=clean_environment() | ours | {"PENSTOCK_SAMPLES": "false"},
    )
    try:
        until((tmp_path / "home" / "client.toml").exists, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()


def test_a_database_of_another_kind(start: Start, tmp_path: Path) -> None:
    """A damaged repository is one sentence, not a traceback."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "repository.sqlite").write_bytes(b"this is no database" * 100)
    code, _, err = start(home=home).ended()
    assert code == 1
    assert "Traceback" not in err


def test_make_up_becomes_the_server() -> None:
    """The recipe's last line is an exec, so that signals reach the server itself."""
    recipe = (ROOT / "Makefile").read_text().partition("\nup:\n")[2].partition("\n\n")[0].splitlines()
    assert recipe[-1].strip().removeprefix("@") == "exec .venv/bin/penstock up"


# --- stopping -----------------------------------------------------------------------------------------------------

SLOW = """
import time
class Slow:
    def predict(self, inputs):
        time.sleep(0.25)
        return {"y": inputs["x"]}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stop_answers_what_is_in_flight(start: Start, tmp_path: Path, number: int) -> None:
    """Requests at the model, in its queue, half sent, and connections that idle: each answered or closed, exit 0. A
    second signal changes nothing."""
    (tmp_path / "slow.py").write_text(SLOW)
    tensors = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]}
    signature = {**tensors, "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]}
    process = start()
    process.ready()
    client = process.client
    with penstock.connect(client["url"], api_key=client["api_key"]) as ps:
        ps.push(str(tmp_path / "slow.py"), "slow", signature=signature, allow_code=True, max_batch=1)
    port = int(client["url"].rpartition(":")[2])
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[7]}]}'
    request = post("/v2/models/slow/infer", body, f"Authorization: Bearer {client['api_key']}")
    wires = [await Wire.to(port) for _ in range(4)]
    half, idle = await Wire.to(port), await Wire.to(port)
    for wire in wires:
        await wire.send(request)
    await half.send(request[:-10])
    first = await wires[0].answer(30)
    process.signal(number)
    await half.send(request[-10:])
    process.signal(signal.SIGTERM)
    answers = [first, *[await wire.answer(30) for wire in (*wires[1:], half)]]
    assert [answer.status for answer in answers] == [200] * 5, answers
    assert await idle.closed(30)
    assert (await asyncio.to_thread(process.ended))[0] == 0
    for wire in (*wires, half, idle):
        await wire.close()


def test_a_stop_while_it_starts(start: Start) -> None:
    """At any moment of the start: exit 0, or 1 with one sentence, and the next start works."""
    for delay in (0.8, 1.6):
        process = start(samples="true")
        timer = threading.Timer(delay, process.signal, [signal.SIGTERM])
        timer.start()
        code, _, err = process.ended()
        timer.join()
        assert code in (0, -signal.SIGTERM), err
        assert "Traceback" not in err
    start().ready()
