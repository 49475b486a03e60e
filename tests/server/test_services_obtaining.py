"""How servers are had: programs built once, packages installed without a trace, containers described to an engine.

`go`, `apt-get` and `docker` are small scripts here that write down what they are asked.
"""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from core.errors import Unavailable
from server.servers import engine, obtaining, places, prometheus, rabbitmq
from server.servers.base import Container
from server.servers.family import family
from server.servers.ferretdb import FerretDB
from server.servers.fleet import Fleet
from server.servers.jaeger import LISTENERS, Jaeger
from server.servers.obtaining import GoProgram, required
from server.servers.places import Place
from server.servers.prometheus import Prometheus
from server.servers.rabbitmq import RabbitMQ
from server.servers.toxiproxy import Toxiproxy

GO = """\
echo built >>"$BUILDS"
while [ "$1" != -o ]; do shift; done
cat main.go go.mod >"$2"
"""
INSTALL = Path(obtaining.RECIPES) / "rabbitmq" / "install"


class Programs:
    """A folder that comes first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, script: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{script}")
        file.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    programs = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{programs.folder}:/usr/bin:/bin")
    return programs


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Go program's sources, and a cache of the test's own."""
    folder = tmp_path / "recipes" / "prog"
    folder.mkdir(parents=True)
    (folder / "main.go").write_text("package main\n")
    (folder / "go.mod").write_text("module x\n\nrequire example.org/prog/v2 v2.3.4-rc1\n")
    monkeypatch.setattr(obtaining, "RECIPES", folder.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    return folder


def test_a_program_is_built_once(programs: Programs, recipe: Path, tmp_path: Path) -> None:
    """Callers at the same time build once; the result lies in the cache under its version, whole; other sources are
    another program."""
    programs.add("go", GO)
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: GoProgram("prog", "example.org/prog/v2").build(said.append), range(4)))
    assert (tmp_path / "builds").read_text() == "built\n"
    assert said == ["building prog 2.3.4-rc1"]
    first = GoProgram("prog", "example.org/prog/v2").path
    assert first.parent == tmp_path / "cache" / "penstock"
    assert first.name.startswith("prog-2.3.4-rc1-")
    assert first.read_text().startswith("package main\n")
    (recipe / "main.go").write_text("package main // changed\n")
    program = GoProgram("prog", "example.org/prog/v2")
    assert program.path != first
    program.build(said.append)
    assert (tmp_path / "builds").read_text() == "built\nbuilt\n"
    assert {file.name for file in first.parent.iterdir()} == {
        name for path in (first, program.path) for name in (path.name, f"{path.name}.lock")
    }


def test_a_build_that_fails_leaves_nothing(programs: Programs, recipe: Path) -> None:
    """The last line that Go said stands in the sentence; the next call tries again."""
    programs.add("go", "echo compiling; echo 'main.go:1: no such thing' >&2; exit 1")
    program = GoProgram("prog", "example.org/prog/v2")
    with pytest.raises(Unavailable, match=r"^prog could not be built: main.go:1: no such thing$"):
        program.build(lambda step: None)
    assert not program.path.exists()
    programs.add("go", GO)
    program.build(lambda step: None)
    assert program.path.exists()


def test_without_go_a_program_cannot_be_had(recipe: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(programs.folder))
    with pytest.raises(
        Unavailable, match=r"^prog is built with Go \(1.24 or later\), which is not on the PATH: install it"
    ):
        GoProgram("prog", "example.org/prog/v2").build(lambda step: None)


def test_recipes_belong_to_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obtaining, "RECIPES", tmp_path)
    with pytest.raises(Unavailable, match=r"^the recipe deploy/services/toxiproxy is missing"):
        Toxiproxy().version()


@pytest.mark.parametrize(
    "text",
    ["require example.org/a v1.2.3", "require (\n\texample.org/a/v2 v2.0.0\n\texample.org/a v1.2.3 // indirect\n)"],
)
def test_a_version_stands_in_go_mod(text: str) -> None:
    assert required(text, "example.org/a") == "1.2.3"
    with pytest.raises(Unavailable):
        required(text, "example.org/b")


def test_a_missing_package_is_the_users_decision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one command to run is named, and not run."""
    monkeypatch.setattr(rabbitmq, "SCRIPTS", tmp_path)
    with pytest.raises(Unavailable) as raised:
        RabbitMQ().obtain(lambda step: None, may_install=False)
    assert raised.value.message == f"RabbitMQ is not installed: run  sudo sh {INSTALL}"


def test_a_package_that_is_there_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rabbitmq-server").touch()
    monkeypatch.setattr(rabbitmq, "SCRIPTS", tmp_path)
    said: list[str] = []
    RabbitMQ().obtain(said.append, may_install=True)
    assert said == []


class Machine:
    """The machine that the install script sees: dpkg's and apt's answers, and a /usr/sbin of its own."""

    def __init__(self, programs: Programs, root: Path) -> None:
        self.programs = programs
        self.policy = root / "usr/sbin/policy-rc.d"
        self.policy.parent.mkdir(parents=True)
        self.calls = root / "calls"
        self.calls.touch()
        self.environment = {**os.environ, "DPKG_ROOT": str(root), "CALLS": str(self.calls), "POLICY": str(self.policy)}
        programs.add("dpkg-query", "exit 1")
        programs.add("systemctl", 'echo "systemctl $*" >>"$CALLS"')
        programs.add("apt-get", self.apt("exit 0"))

    @staticmethod
    def apt(end: str) -> str:
        """What a package's own scripts would do in between: ask whether a service may start."""
        return f"""\
echo "apt-get $1" >>"$CALLS"
for service in rabbitmq-server epmd.socket postgresql; do
    code=0; "$POLICY" $service start || code=$?
    echo "$service $code" >>"$CALLS"
done
{end}
"""

    def install(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", INSTALL], env=self.environment, capture_output=True, text=True, timeout=30)

    @property
    def log(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def machine(programs: Programs, tmp_path: Path) -> Machine:
    return Machine(programs, tmp_path / "root")


ASKED = ["rabbitmq-server 101", "epmd.socket 101", "postgresql 0"]


def test_the_packages_own_service_is_not_started(machine: Machine) -> None:
    """Neither now nor at the next boot, without touching another package's; what forbade it is gone afterwards."""
    assert machine.install().returncode == 0
    assert machine.log == [
        "apt-get install",
        *ASKED,
        "systemctl disable rabbitmq-server.service",
        "systemctl disable epmd.service epmd.socket",
    ]
    assert not machine.policy.exists()


@pytest.mark.parametrize(
    ("fails", "then"), [("exit 1", []), ('[ "$1" = update ]; exit $?', ["apt-get install", *ASKED])]
)
def test_an_installation_that_fails_leaves_no_trace(machine: Machine, fails: str, then: list[str]) -> None:
    """Tried once more with fresh lists, where those can be had, then given up."""
    machine.programs.add("apt-get", machine.apt(fails))
    assert machine.install().returncode != 0
    assert machine.log == ["apt-get install", *ASKED, "apt-get update", *ASKED, *then]
    assert not machine.policy.exists()


def test_an_installation_that_is_killed_forbids_nothing_afterwards(machine: Machine) -> None:
    """What it left behind lets every service start, and the next installation takes it away."""
    machine.programs.add("apt-get", "kill -9 $PPID")
    machine.install()
    assert machine.policy.exists()
    assert subprocess.run([machine.policy, "rabbitmq-server", "start"]).returncode == 0
    machine.programs.add("apt-get", machine.apt("exit 0"))
    assert machine.install().returncode == 0
    assert not machine.policy.exists()


@pytest.mark.parametrize(("code", "installed"), [(101, True), (0, False), (104, False)])
def test_the_machines_own_policy_is_kept(machine: Machine, code: int, installed: bool) -> None:
    """One that forbids does what is needed; one that allows is not overruled: then nothing is installed."""
    machine.programs.add("ours", "")
    text = f"#!/bin/sh\nexit {code}\n"
    machine.policy.write_text(text)
    machine.policy.chmod(0o755)
    done = machine.install()
    assert (done.returncode == 0) is installed
    assert ("apt-get install" in machine.log) is installed
    assert machine.policy.read_text() == text
    if not installed:
        assert "install rabbitmq-server by hand" in done.stderr


def test_an_installed_package_is_left_alone(machine: Machine) -> None:
    """A broker that somebody runs is neither upgraded nor disabled."""
    machine.programs.add("dpkg-query", "echo installed")
    assert machine.install().returncode == 0
    assert machine.log == []


DOCKER = """\
echo "$*" >>"$CALLS"
case $1 in
info) echo 28.0 ;;
run) touch "$RUNS" ;;
rm) rm -f "$RUNS" ;;
ps) [ ! -e "$RUNS" ] || sed -n 's/^run .*--name \\([^ ]*\\) .*/\\1/p' "$CALLS" | tail -1 ;;
inspect) case $3 in *Pid*) [ -e "$RUNS" ] && echo 4242 ;; *) echo "$EXIT" ;; esac ;;
esac
"""


class Docker:
    def __init__(self, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = tmp_path / "docker-calls"
        monkeypatch.setenv("CALLS", str(self.calls))
        monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("EXIT", "0")
        programs.add("docker", DOCKER)

    @property
    def verbs(self) -> list[str]:
        return [line.split()[0] for line in self.calls.read_text().splitlines()]


@pytest.fixture
def docker(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    return Docker(programs, tmp_path, monkeypatch)


class Contained(FerretDB):
    def answers(self, url: str, place: Place) -> bool:
        return True


class ContainedJaeger(Jaeger):
    def answers(self, url: str, place: Place) -> bool:
        return True


def test_where_an_engine_answers_containers_run(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started once, its first process shown, stopped and removed; the exit code of a kill is told."""
    fleet = Fleet(tmp_path / "home", (Contained(),), {}, may_install=False)
    assert fleet.up(fleet.servers, lambda step: None) == {}
    (status,) = fleet.status(fleet.servers)
    assert (status.state, status.source, status.pid, status.version) == ("running", "container", 4242, "8.0.13")
    assert status.url == f"mongodb://127.0.0.1:{fleet.place(fleet.servers[0]).remembered('port')}/"
    assert fleet.up(fleet.servers, lambda step: None) == {}
    assert docker.verbs.count("run") == 1
    monkeypatch.setenv("EXIT", "137")
    assert fleet.down(fleet.servers, lambda step: None) == [engine.container_name(fleet.place(fleet.servers[0]))]
    assert docker.verbs[-4:] == ["stop", "inspect", "ps", "rm"]
    assert fleet.status(fleet.servers)[0].state == "stopped"


def test_an_engine_that_does_not_answer_is_none(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without a daemon, one that hangs, and none at all."""
    programs.add("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert not engine.answers()
    monkeypatch.setattr(engine, "INFO_WITHIN_S", 0.2)
    programs.add("docker", "exec sleep 60")
    assert not engine.answers()
    (programs.folder / "docker").unlink()
    assert not engine.answers()


def test_what_an_engine_is_told() -> None:
    """Ports on loopback only, data in a volume of that name, files to read only."""
    container = Container(
        "x://", {20001: 5672}, ("--flag",), volume="/data", files={"/ours": "/theirs"}, environment={"SOME": "thing"}
    )
    words = " ".join(engine.arguments("image:1", container, "name"))
    assert words.startswith("run --detach --name name ")
    assert words.endswith(
        " --env SOME=thing --publish 127.0.0.1:20001:5672 --volume name:/data --volume /ours:/theirs:ro image:1 --flag"
    )
    assert "--network host" in " ".join(engine.arguments("i:1", Container("x://", {}, network="host"), "name"))


@pytest.mark.parametrize("server", family(), ids=lambda server: server.name)
def test_every_image_has_a_fixed_version_and_loopback_ports(
    server: RabbitMQ | FerretDB | Toxiproxy | Jaeger | Prometheus, tmp_path: Path
) -> None:
    """And what is mounted can be read by another user, inside a folder that nobody else may enter."""
    if not server.image_name:
        return
    assert re.search(r":v?\d+\.\d+\.\d+(-management)?$", server.image_name)
    place = Place(tmp_path / "home" / "services", server.name)
    place.make()
    container = server.container(place)
    assert f"127.0.0.1:{place.remembered('port')}" in container.url
    for file in map(Path, container.files):
        assert file.stat().st_mode & 0o777 == (0o755 if file.is_dir() else 0o644)
        assert file.parent.stat().st_mode & 0o077 == 0


def test_brokers_files_are_private(tmp_path: Path) -> None:
    """The cookie that lets a process join the node, and the password; everything it listens on is loopback."""
    place = Place(tmp_path, "rabbitmq")
    place.make()
    launch = RabbitMQ().launch(place)
    assert {path.stat().st_mode & 0o077 for path in place.folder.rglob("*")} == {0}
    assert (place.folder / "home/.erlang.cookie").stat().st_mode & 0o777 == 0o400
    assert launch.environment["RABBITMQ_NODE_IP_ADDRESS"] == launch.environment["ERL_EPMD_ADDRESS"] == "127.0.0.1"
    assert (
        len({launch.environment[name] for name in ("RABBITMQ_NODE_PORT", "RABBITMQ_DIST_PORT", "ERL_EPMD_PORT")}) == 3
    )


def test_what_runs_in_a_container_is_found_as_well(docker: Docker, tmp_path: Path) -> None:
    """By all the variables that clients need, not only by its URL's."""
    fleet = Fleet(tmp_path / "home", (ContainedJaeger(),), {}, may_install=False)
    fleet.up(fleet.servers, lambda step: None)
    place = fleet.place(fleet.servers[0])
    assert fleet.exports(fleet.servers) == {
        "PENSTOCK_JAEGER_URL": f"http://127.0.0.1:{place.remembered('port')}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{place.remembered('otlp grpc')}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }


def test_jaeger_is_told_each_of_its_ports(tmp_path: Path) -> None:
    """One of loopback for each, no two the same; it traces itself nowhere, and forgets."""
    place = Place(tmp_path / "services", "jaeger")
    place.make()
    launch = Jaeger().launch(place)
    listening = [word.partition("=")[2] for word in launch.argv if ".host-port=127.0.0.1:" in word]
    assert len(set(listening)) == len(LISTENERS)
    assert "--collector.zipkin.host-port=" in launch.argv
    assert [word for word in launch.argv if word.startswith("--memory.max-traces=")]
    assert launch.environment["OTEL_TRACES_SAMPLER"] == "always_off"


def test_ports_of_one_place_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few there are."""
    monkeypatch.setattr(places, "PORTS", range(20_000, 20_004))
    monkeypatch.setattr(places, "_free", lambda port: True)
    place = Place(tmp_path / "services", "x")
    place.make()
    assert {place.port(str(number)) for number in range(4)} == set(places.PORTS)


def test_prometheus_looks_where_processes_leave_their_addresses(tmp_path: Path) -> None:
    """In PENSTOCK_HOME/metrics, made with its folder of rules; what it keeps is bounded."""
    place = Place(tmp_path / "a home" / "services", "prometheus")
    place.make()
    (tmp_path / "a home" / "metrics").mkdir(mode=0o700)
    config = yaml.safe_load(prometheus.configuration(prometheus.targets(place)))
    folder = tmp_path / "a home" / "metrics"
    assert config["rule_files"] == [f"{folder}/rules/*.yml"]
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [f"{folder}/*.json"]
    assert [each.stat().st_mode & 0o777 for each in (folder, folder / "rules")] == [0o755, 0o755], (
        "a container reads it"
    )
    container = Prometheus().container(place)
    assert f"--web.listen-address=127.0.0.1:{place.remembered('port')}" in container.arguments
    assert {word.partition("=")[0] for word in container.arguments if "retention" in word} == {
        "--storage.tsdb.retention.time",
        "--storage.tsdb.retention.size",
    }


def test_a_missing_prometheus_is_the_users_decision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As with the broker."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"^Prometheus is not installed: run  sudo sh .*/prometheus/install$"):
        Prometheus().obtain(lambda step: None, may_install=False)
