"""`penstock services`: where a server comes from, whose a process is, and a fleet of small servers of our own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
import typer
from typer.testing import CliRunner

from core.errors import InvalidRequest, Unavailable
from server import services
from server.servers import processes
from server.servers.base import Launch, Say, Server, connects
from server.servers.choice import MASK, Source, masked, may_install, source
from server.servers.family import family
from server.servers.fleet import CRASHED, GIVEN, RUNNING, SILENT, STOPPED, Fleet
from server.servers.places import Place
from server.servers.processes import Birth, Seen, belongs

MARK = "/home/me/.penstock/services/x"
LEADER = Birth(pid=100, started=5000, boot="today")


def alone(process: Seen) -> dict[int, Seen]:
    return {process.pid: process}


@pytest.mark.parametrize(
    ("url", "engine", "image", "expected"),
    [
        ("", False, "", Source.NATIVE),
        ("", False, "rabbitmq:4", Source.NATIVE),
        ("", True, "", Source.NATIVE),
        ("", True, "rabbitmq:4", Source.CONTAINER),
        ("amqp://there", False, "", Source.ENVIRONMENT),
        ("amqp://there", True, "rabbitmq:4", Source.ENVIRONMENT),
    ],
)
def test_where_a_server_comes_from(url: str, engine: bool, image: str, expected: Source) -> None:
    """Its URL from the environment, else a container where an engine answers and there is an image, else natively."""
    assert source(url, engine, image) is expected


@pytest.mark.parametrize(
    ("uid", "environment", "expected"),
    [
        (0, {}, True),
        (1000, {}, False),
        (1000, {"CI": "true"}, True),
        (1000, {"CI": "1"}, True),
        (1000, {"CI": "false"}, False),
        (1000, {"CI": ""}, False),
    ],
)
def test_who_may_install(uid: int, environment: dict[str, str], expected: bool) -> None:
    """Root and CI; nobody else's machine is changed unasked."""
    assert may_install(uid, environment) is expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:secret@127.0.0.1:5672/vhost", f"amqp://me:{MASK}@127.0.0.1:5672/vhost"),
        ("amqp://me:s:e@c@127.0.0.1:5672/", f"amqp://me:{MASK}@127.0.0.1:5672/"),
        ("mongodb://127.0.0.1:27017/", "mongodb://127.0.0.1:27017/"),
        ("mongodb://me@127.0.0.1/", "mongodb://me@127.0.0.1/"),
        ("127.0.0.1:6379", "127.0.0.1:6379"),
        ("", ""),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    """All else of a URL is shown as it is."""
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("process", "leader_now", "ours"),
    [
        (Seen(100, 100, 5000, MARK, "server"), None, True),
        (Seen(101, 7, 6000, MARK, "a daemon of its own"), None, True),
        (Seen(102, 100, 6000, "", "renamed itself"), Seen(100, 100, 5000, MARK, "server"), True),
        (Seen(102, 100, 6000, "", "renamed itself, alone"), None, True),
        (Seen(100, 100, 9000, "", "the number, reused"), None, False),
        (Seen(102, 100, 9001, "", "child of the reused number"), Seen(100, 100, 9000, "", "other"), False),
        (Seen(102, 100, 4000, "", "older than our server"), None, False),
        (Seen(102, 100, 6000, "/another/place", "another place's"), None, False),
        (Seen(103, 7, 6000, "", "a stranger"), None, False),
    ],
)
def test_whose_a_process_is(process: Seen, leader_now: Seen | None, ours: bool) -> None:
    """By the mark it shows, else by its session; a number that was reused is nobody's."""
    others = alone(process) | (alone(leader_now) if leader_now else {})
    assert belongs(process, LEADER, MARK, "today", others) is ours


def test_after_a_reboot_numbers_mean_nothing() -> None:
    """The same number and the same time since boot, but another boot: only the mark counts."""
    assert not belongs(Seen(100, 100, 5000, "", "x"), LEADER, MARK, "tomorrow", {})
    assert belongs(Seen(100, 100, 5000, MARK, "x"), LEADER, MARK, "tomorrow", {})
    assert not belongs(Seen(100, 100, 5000, "", "x"), None, MARK, "today", {})


Spawn = Callable[[str], Birth]


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path)
    for process in processes.family(None, str(tmp_path)):
        processes.send(process, signal.SIGKILL)


@pytest.fixture
def spawn(tmp_path: Path, mark: str) -> Spawn:
    def run(script: str) -> Birth:
        return processes.spawn(("sh", "-c", script), {}, mark, tmp_path, tmp_path / "log")

    return run


def test_a_family_is_found_and_ends_together(spawn: Spawn, mark: str, tmp_path: Path) -> None:
    """A child that makes itself a daemon and one whose environment is empty go with the leader; nothing is killed."""
    leader = spawn("setsid sleep 60 & env -i sleep 60 & echo up; wait")
    assert processes.wait_until(lambda: len(processes.family(leader, mark)) == 3, 10)
    assert processes.family(leader, mark)[0].pid == leader.pid
    assert os.getsid(leader.pid) == leader.pid, "Ctrl-C at our terminal does not reach it"
    assert processes.stop(leader, mark, within_s=5) == []
    assert processes.family(leader, mark) == []
    assert not processes.alive(leader)
    assert (tmp_path / "log").read_text() == "up\n"
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_leader_that_was_killed_leaves_a_family_that_is_found(spawn: Spawn, mark: str) -> None:
    leader = spawn("sleep 60 & env -i sleep 60 & wait")
    assert processes.wait_until(lambda: len(processes.family(leader, mark)) == 3, 10)
    os.kill(leader.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.alive(leader), 10)
    assert len(processes.family(leader, mark)) == 2
    assert processes.stop(leader, mark, within_s=0.2) == []
    assert processes.family(leader, mark) == []


def test_what_does_not_stop_is_killed_and_named(spawn: Spawn, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LAST_GRACE_S", 0.3)
    leader = spawn("trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    log = Path(mark) / "log"
    assert processes.wait_until(lambda: log.read_text() == "deaf\n", 10)
    killed = processes.stop(leader, mark, within_s=0.3)
    assert f"sh ({leader.pid})" in killed
    assert processes.wait_until(lambda: processes.family(leader, mark) == [], 10)


def test_a_paused_process_stops_too(spawn: Spawn, mark: str) -> None:
    leader = spawn("exec sleep 60")
    os.kill(leader.pid, signal.SIGSTOP)
    assert processes.stop(leader, mark, within_s=5) == []


def test_a_reused_number_is_left_alone(mark: str) -> None:
    """A record whose number is another process's by now: it is neither taken for the server nor signalled."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        now = processes.seen(stranger.pid)
        assert now is not None
        stale = Birth(stranger.pid, now.started - 1, processes.boot_id())
        assert not processes.alive(stale)
        assert processes.stop(stale, mark, within_s=0.2) == []
        processes.send(now._replace(started=now.started - 1), signal.SIGKILL)
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(0.3)
        stranger.kill()


def test_a_server_does_not_see_its_starters_settings() -> None:
    """Neither settings of ours nor of the servers, which a shell may have for another one."""
    shell = {"PATH": "/bin", "PENSTOCK_AMQP_URL": "x", "RABBITMQ_NODENAME": "x", "RAY_ADDRESS": "x", "LANG": "C"}
    assert processes.inherited(shell) == {"PATH": "/bin", "LANG": "C"}


def test_a_place_keeps_ports_and_secrets(tmp_path: Path) -> None:
    """The same at the next start; nobody else reads them; a port that was taken meanwhile is another."""
    place = Place(tmp_path / "services", "x")
    place.make()
    port, secret = place.port("port"), place.secret("password")
    again = Place(tmp_path / "services", "x")
    assert (again.port("port"), again.secret("password")) == (port, secret)
    assert again.port("other") != port
    assert [path.stat().st_mode & 0o077 for path in (place.folder, place.folder / "kept.json")] == [0, 0]
    with subprocess.Popen([sys.executable, "-ISc", SERVER, str(port)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        assert Place(tmp_path / "services", "x").port("port") != port
        other.kill()


SERVER = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(b"hello")
    connection.close()
"""


class Greeter(Server):
    """Says hello on a port. `script`: what runs instead; `missing`: why it cannot be had."""

    name: ClassVar[str] = "greeter"
    title: ClassVar[str] = "Greeter"
    variable: ClassVar[str] = "PENSTOCK_GREETER_URL"
    start_within_s: ClassVar[float] = 10.0
    stop_within_s: ClassVar[float] = 5.0

    def __init__(self, script: str = SERVER, missing: str = "") -> None:
        self.script = script
        self.missing = missing

    def version(self) -> str:
        return "1.0"

    def obtain(self, say: Say, may_install: bool) -> None:
        if self.missing:
            raise Unavailable(self.missing)

    def launch(self, place: Place) -> Launch:
        port = place.port("port")
        argv = (sys.executable, "-ISc", self.script, str(port))
        return Launch(argv, f"tcp://me:{place.secret('password')}@127.0.0.1:{port}", exports={"GREETING": "it's hello"})

    def answers(self, url: str, place: Place) -> bool:
        connection = connects(url, 1.0)
        if connection is None:
            return False
        with connection:
            try:
                return connection.recv(5) == b"hello"
            except OSError:
                return False


def quiet(step: str) -> None:
    pass


MakeFleet = Callable[..., Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[MakeFleet]:
    made: list[Fleet] = []

    def make(*servers: Server, **environment: str) -> Fleet:
        made.append(Fleet(tmp_path / "home", servers or (Greeter(),), environment, may_install=False, containers=False))
        return made[-1]

    yield make
    for fleet in made:
        fleet.down(fleet.servers, quiet)


def states(fleet: Fleet) -> list[tuple[str, int]]:
    return [(status.state, status.pid) for status in fleet.status(fleet.servers)]


def test_up_and_down(make_fleet: MakeFleet, tmp_path: Path) -> None:
    """Started it answers, again there is nothing to do; its URL is the same after a stop; looking at it leaves no
    trace."""
    fleet = make_fleet()
    assert states(fleet) == [(STOPPED, 0)]
    assert not (tmp_path / "home").exists()
    said: list[str] = []
    assert fleet.up(fleet.servers, said.append) == {}
    assert said == ["starting Greeter 1.0", "waiting for Greeter"]
    ((state, pid),) = states(fleet)
    assert state == RUNNING
    assert fleet.up(fleet.servers, said.append) == {}
    assert states(fleet) == [(RUNNING, pid)]
    url = fleet.exports(fleet.servers)["PENSTOCK_GREETER_URL"]
    assert fleet.down(fleet.servers, quiet) == []
    assert states(fleet) == [(STOPPED, 0)]
    assert fleet.exports(fleet.servers) == {}
    assert fleet.down(fleet.servers, quiet) == []
    fleet.up(fleet.servers, quiet)
    assert fleet.exports(fleet.servers)["PENSTOCK_GREETER_URL"] == url
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "home", fleet.folder)] == [0o700, 0o700]


@pytest.mark.parametrize(("number", "state"), [(signal.SIGKILL, CRASHED), (signal.SIGSTOP, SILENT)])
def test_a_half_dead_server_is_repaired(make_fleet: MakeFleet, number: signal.Signals, state: str) -> None:
    """One that crashed and one that answers no more are shown as that, and started again."""
    fleet = make_fleet()
    fleet.up(fleet.servers, quiet)
    ((_, pid),) = states(fleet)
    os.kill(pid, number)
    assert processes.wait_until(lambda: states(fleet)[0][0] == state, 10)
    assert fleet.up(fleet.servers, quiet) == {}
    ((now, other),) = states(fleet)
    assert now == RUNNING
    assert other != pid
    assert processes.seen(pid) is None


def test_a_server_outlives_a_lost_folder_no_longer_than_the_next_command(make_fleet: MakeFleet) -> None:
    """What runs is found by its mark when the record is gone, so that no second one meets it."""
    fleet = make_fleet()
    fleet.up(fleet.servers, quiet)
    ((_, pid),) = states(fleet)
    (fleet.folder / "greeter" / "running.json").unlink()
    assert fleet.up(fleet.servers, quiet) == {}
    assert processes.seen(pid) is None


def test_a_server_given_by_the_environment_is_left_alone(make_fleet: MakeFleet) -> None:
    """Neither started nor had; shown as given, and handed on."""
    fleet = make_fleet(Greeter(missing="nowhere to be had"), PENSTOCK_GREETER_URL="tcp://there:1")
    assert fleet.up(fleet.servers, quiet) == {}
    assert states(fleet) == [(GIVEN, 0)]
    assert fleet.exports(fleet.servers) == {"PENSTOCK_GREETER_URL": "tcp://there:1"}


def test_one_that_cannot_be_had_says_why(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(Greeter(missing="Greeter is not installed: run  make greeter"))
    assert fleet.up(fleet.servers, quiet) == {"greeter": "Greeter is not installed: run  make greeter"}


def test_one_that_ends_at_its_start_shows_its_last_words(make_fleet: MakeFleet) -> None:
    """It is not waited for any longer, and the end of its log stands in the sentence."""
    fleet = make_fleet(Greeter("import sys; sys.exit('no disk')"))
    (why,) = fleet.up(fleet.servers, quiet).values()
    assert why.startswith("Greeter ended at its start")
    assert why.endswith("no disk")
    assert states(fleet) == [(STOPPED, 0)]


def test_one_that_is_known_to_give_up_is_started_again(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As often as it says, and no more."""
    starts = tmp_path / "starts"
    count = f"open({str(starts)!r}, 'a').write('x')\n"
    give_up = f"if len(open({str(starts)!r}).read()) < 3: raise SystemExit('too busy')\n"
    monkeypatch.setattr(Greeter, "attempts", 2)
    fleet = make_fleet(Greeter(count + give_up + SERVER))
    (why,) = fleet.up(fleet.servers, quiet).values()
    assert why.endswith("too busy")
    assert starts.read_text() == "xx"
    assert fleet.up(fleet.servers, quiet) == {}


def test_one_that_never_answers_is_stopped(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Greeter, "start_within_s", 1.0)
    fleet = make_fleet(Greeter("import time; time.sleep(60)"))
    (why,) = fleet.up(fleet.servers, quiet).values()
    assert why.startswith("Greeter was not ready within 1 s")
    assert states(fleet) == [(STOPPED, 0)]
    assert processes.family(None, str(fleet.folder / "greeter")) == []


def test_callers_at_the_same_time_start_one(make_fleet: MakeFleet) -> None:
    """The second waits for the first and finds it running."""
    fleets = [make_fleet() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda fleet: fleet.up(fleet.servers, quiet), fleets)) == [{}] * 4
    assert len(processes.family(None, str(fleets[0].folder / "greeter"))) == 1


def test_down_names_what_had_to_be_killed(make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Greeter, "stop_within_s", 0.2)
    monkeypatch.setattr(processes, "LAST_GRACE_S", 0.2)
    fleet = make_fleet(Greeter("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER))
    assert fleet.up(fleet.servers, quiet) == {}
    ((_, pid),) = states(fleet)
    (killed,) = fleet.down(fleet.servers, quiet)
    assert killed.endswith(f"({pid})")
    assert processes.seen(pid) is None


def test_only_some(make_fleet: MakeFleet) -> None:
    """Names in any order, each once; one that is unknown is an error that lists the known ones."""
    fleet = Fleet(Path("unused"), family(), {}, may_install=False)
    assert [server.name for server in fleet.chosen("")] == [
        *("rabbitmq", "mongo", "toxiproxy", "ray", "jaeger", "prometheus")
    ]
    assert [server.name for server in fleet.chosen("ray, mongo,ray")] == ["ray", "mongo"]
    with pytest.raises(InvalidRequest, match=r"no server 'redis': choose from rabbitmq, mongo, toxiproxy, ray, jaeger"):
        fleet.chosen("redis")


class Commands:
    """`penstock services WORDS` with one greeter for its family."""

    def __init__(self) -> None:
        self._runner = CliRunner()

    def __call__(self, *words: str) -> tuple[int, str, str]:
        done = self._runner.invoke(services.services, list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no container engine
    monkeypatch.setattr(services, "family", lambda: (Greeter(),))
    command = Commands()
    yield command
    command("down")


def test_the_commands_show_no_password(command: Commands) -> None:
    """But for `env`, whose lines a shell evaluates: what they say is what a client needs."""
    code, out, err = command("up")
    assert (code, err) == (0, "")
    shown = json.loads(command("status", "--json")[1])
    assert {**shown[0], "pid": 0} == {
        "name": "greeter",
        "state": "running",
        "source": "native",
        "url": shown[0]["url"],
        "pid": 0,
        "version": "1.0",
    }
    exports = json.loads(command("env", "--json")[1])
    password = urlsplit(exports["PENSTOCK_GREETER_URL"]).password or ""
    assert len(password) == 64
    assert password not in out + command("status")[1] + json.dumps(shown)
    script = command("env")[1] + 'printf %s "$PENSTOCK_GREETER_URL $GREETING"'
    printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == f"{exports['PENSTOCK_GREETER_URL']} it's hello"
    assert command("down") == (0, "stopping Greeter …\n", "")


def test_a_failure_is_one_sentence_and_exit_code_1(command: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "family", lambda: (Greeter(missing="Greeter is not installed"),))
    code, _, err = command("up")
    assert (code, err) == (1, "penstock: Greeter is not installed\n")
    for words in (("up",), ("down",), ("status",), ("env",)):
        code, _, err = command(*words, "--only", "redis")
        assert (code, err) == (1, "penstock: there is no server 'redis': choose from greeter\n")


def test_it_is_a_typer_application() -> None:
    """As the entry point expects it."""
    assert isinstance(services.services, typer.Typer)
