"""Real servers for tests: RabbitMQ, MongoDB's protocol, toxiproxy, Ray, Jaeger, Prometheus; started when the first
test asks for one.

All processes of a run (pytest-xdist's workers too) share one of each, in a folder of the run. What ends them is a small
shell that waits for the end of a pipe from the process that leads the run: however that process ends, they end. A test
that disturbs a server takes one of its own (`broker`, `own_mongo`), which ends in the same way.

Where a server cannot be had, in CI and as root its tests fail; elsewhere they are left out, and the run ends by saying
so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from core.errors import Unavailable
from server.servers import engine, processes, prometheus, rabbitmq
from server.servers.base import Server
from server.servers.choice import may_install
from server.servers.ferretdb import FerretDB
from server.servers.fleet import SILENT, Fleet
from server.servers.jaeger import Jaeger
from server.servers.places import Place, Running
from server.servers.prometheus import Prometheus
from server.servers.rabbitmq import RabbitMQ
from server.servers.ray_head import LOOPBACK, RayHead
from server.servers.toxiproxy import Toxiproxy
from tests.running import clean_environment
from tests.toxics import Toxics
from tests.watched import Metrics, Traces

ROOT = Path(__file__).parent.parent
LEFT_OUT = "left out: "
RAY_CPUS = 4
OBJECT_STORE_BYTES = 100_000_000
STOPPED_WITHIN_S = 120
TO_THE_END = """\
read -r _
for home in "$1"/*; do
    [ -d "$home" ] || continue
    PENSTOCK_HOME="$home" "$2" -c 'from server.services import services; services(["down"])' || exit 1
done
rm -rf "$1"
"""
FOLDER = pytest.StashKey[Path]()
GUARD = pytest.StashKey[subprocess.Popen[bytes]]()


def family() -> tuple[Server, ...]:
    return (RabbitMQ(), FerretDB(), Toxiproxy(), RayHead(RAY_CPUS, OBJECT_STORE_BYTES), Jaeger(), Prometheus())


class Servers:
    """Those in one folder of the run. `url` starts one, unless a process of the run has done so already."""

    def __init__(self, home: Path) -> None:
        self.fleet = Fleet(home, family(), {}, may_install=may_install(os.getuid(), os.environ))
        self._failed: dict[str, str] = {}

    def url(self, name: str) -> str:
        """Fails or leaves out the test that asks where the server cannot be had."""
        (server,) = self.fleet.chosen(name)
        if name not in self._failed:
            self._patient(server)
            self._failed |= self.fleet.up([server], lambda step: None)
        if why := self._failed.get(name):
            if may_install(os.getuid(), os.environ):
                pytest.fail(why)
            pytest.skip(LEFT_OUT + why)
        return self.fleet.status([server])[0].url

    def _patient(self, server: Server) -> None:
        """Give one that runs and does not answer half a minute: it is taken for dead then, and started anew under
        whoever else uses it."""
        deadline = time.monotonic() + 30
        while self.fleet.status([server])[0].state == SILENT and time.monotonic() < deadline:
            time.sleep(0.3)

    def prepare(self) -> None:
        """Build and install what is missing of all that can be had, so that nobody's time limit is spent on it."""
        if engine.answers():
            return
        for server in self.fleet.servers:
            with suppress(Unavailable):
                server.obtain(lambda step: None, may_install(os.getuid(), os.environ))

    def exports(self, name: str) -> dict[str, str]:
        return self.fleet.exports(self.fleet.chosen(name))

    def place(self, name: str) -> Place:
        (server,) = self.fleet.chosen(name)
        return self.fleet.place(server)


class Own:
    """A server that one test module has for itself, to be disturbed. Its URL stays the same throughout."""

    def __init__(self, home: Path, name: str) -> None:
        self.servers = Servers(home)
        self.name = name
        self.url = self.servers.url(name)

    def __repr__(self) -> str:
        return f"<Own {self.name} {self._running.birth or self._running.container}>"

    def pause(self) -> None:
        """Stop its processes where they are: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP, "pause")
        assert processes.wait_until(lambda: all(_stands_still(process.pid) for process in self._family), 10), (
            f"{self.name} goes on"
        )

    def resume(self) -> None:
        self._signal(signal.SIGCONT, "unpause")

    def kill(self) -> None:
        """End it without notice. A broker forgets what it was told in the last seconds: Mnesia writes its log late."""
        self._signal(signal.SIGKILL, "kill")
        assert processes.wait_until(lambda: self._silent, 10), f"{self.name} outlived its end"

    def start(self) -> None:
        """Bring it back with its data, after `kill` or `stop`; done when it answers."""
        assert self.servers.url(self.name) == self.url

    def stop(self) -> None:
        """End it as an operator would."""
        self.servers.fleet.down(self.servers.fleet.chosen(self.name), lambda step: None)

    @property
    def _running(self) -> Running:
        running = self.servers.place(self.name).running
        assert running is not None, f"{self.name} is not started"
        return running

    @property
    def _silent(self) -> bool:
        (server,) = self.servers.fleet.chosen(self.name)
        return not server.answers(self.url, self.servers.place(self.name))

    def _signal(self, number: signal.Signals, word: str) -> None:
        running = self._running
        if running.container:
            engine.act(word, running.container)
            return
        for process in self._family:
            processes.send(process, number)

    @property
    def _family(self) -> list[processes.Seen]:
        """Its processes, where it was started natively."""
        return processes.family(self._running.birth, self.servers.place(self.name).mark)


def _stands_still(pid: int) -> bool:
    """Whether each thread of it has taken notice of SIGSTOP: a busy one needs a while."""
    tasks = [(task / "stat").read_text() for task in (processes.PROC / str(pid) / "task").iterdir()]
    return all(task.rpartition(") ")[2].startswith("T") for task in tasks)


class Broker(Own):
    """A RabbitMQ; `rabbitmqctl` takes seconds a call."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "rabbitmq")

    def stop_app(self) -> None:
        """Clients are told that the broker shuts down, its port is closed; the node stays."""
        self.control("stop_app")

    def start_app(self) -> None:
        self.control("start_app")

    def memory_alarm(self, on: bool) -> None:
        """Publishers are blocked (connection.blocked) while it is on."""
        self.control("set_vm_memory_high_watermark", "0.00001" if on else "0.4")

    def control(self, *words: str) -> str:
        """What `rabbitmqctl WORDS` prints."""
        container = self._running.container
        if container:
            return engine.run_inside(container, "rabbitmqctl", "--quiet", *words)
        return rabbitmq.control(self.servers.place(self.name), *words)


@contextmanager
def fresh_vhost(servers: Servers) -> Iterator[str]:
    """The URL of a virtual host that nobody else uses, deleted afterwards with all that it holds."""
    url = servers.url("rabbitmq")
    management = rabbitmq.management_url(servers.place("rabbitmq"))
    name = f"test-{uuid.uuid4().hex}"
    _manage("PUT", f"{management}/api/vhosts/{name}", url)
    try:
        yield url + name
    finally:
        _manage("DELETE", f"{management}/api/vhosts/{name}", url)


def _manage(method: str, address: str, url: str) -> None:
    user, password = rabbitmq.credentials(url)
    authorization = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(address, method=method, headers={"Authorization": authorization})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Servers:
    """Those that all processes of this run share."""
    return Servers(_folder(pytestconfig) / "shared")


@pytest.fixture
def amqp_url(servers: Servers) -> Iterator[str]:
    """A RabbitMQ, in a virtual host of this test's own. For a module's: `fresh_vhost(servers)`."""
    with fresh_vhost(servers) as url:
        yield url


@pytest.fixture
def mongo_url(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MongoDB's protocol, with a database of this test's own as the URL's path, dropped afterwards. It is there
    already, and this process waits for it: on a busy machine it may take longer than the product gives any call. How
    long that is, is tested where the database is away (`own_mongo`)."""
    from pymongo import MongoClient

    monkeypatch.setattr("repository.mongo.WITHIN_S", 30.0)
    url = servers.url("mongo")
    name = f"test_{uuid.uuid4().hex}"
    client: MongoClient[dict[str, Any]] = MongoClient(url, serverSelectionTimeoutMS=30_000)
    with client:
        client[name].create_collection("made")
        yield url + name
        client.drop_database(name)


@pytest.fixture
def toxiproxy(servers: Servers) -> Iterator[Toxics]:
    """Links that can be cut, delayed and throttled; gone after the test."""
    with Toxics(servers.url("toxiproxy")) as toxics:
        yield toxics


@pytest.fixture(name="jaeger")
def jaeger_(servers: Servers) -> Traces:
    """Takes spans and tells of them; a test's are known by their service's name."""
    url = servers.url("jaeger")
    return Traces(url, servers.exports("jaeger")["OTEL_EXPORTER_OTLP_ENDPOINT"])


@pytest.fixture(name="prometheus")
def prometheus_(servers: Servers) -> Metrics:
    """Scrapes what a test has it `scraped`; a test's are known by their labels."""
    return Metrics(servers.url("prometheus"), prometheus.targets(servers.place("prometheus")))


@contextmanager
def own_broker(config: pytest.Config) -> Iterator[Broker]:
    """A RabbitMQ of whoever asks, to be disturbed."""
    own = Broker(_own_folder(config))
    yield own
    own.stop()


@pytest.fixture(scope="module")
def broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """A RabbitMQ of this module's own, to be disturbed."""
    with own_broker(pytestconfig) as own:
        yield own


@pytest.fixture(scope="module")
def own_mongo(pytestconfig: pytest.Config) -> Iterator[Own]:
    """A server of MongoDB's protocol of this module's own, to be disturbed."""
    own = Own(_own_folder(pytestconfig), "mongo")
    yield own
    own.stop()


@pytest.fixture(scope="session")
def ray_address(servers: Servers) -> Iterator[str]:
    """The head of a local Ray cluster. From here on this process's environment holds what a driver needs to join."""
    address = servers.url("ray")
    with pytest.MonkeyPatch.context() as environment:
        for variable, value in servers.exports("ray").items():
            environment.setenv(variable, value)
        yield address


def _folder(config: pytest.Config) -> Path:
    return config.stash[FOLDER]


def _own_folder(config: pytest.Config) -> Path:
    return _folder(config) / f"own-{uuid.uuid4().hex[:8]}"


def pytest_configure(config: pytest.Config) -> None:
    """The process that leads the run makes its folder, and the guard that empties it; the others are told of it."""
    os.environ |= LOOPBACK  # read when Ray is imported, whoever does so first
    told = getattr(config, "workerinput", {}).get("servers")
    if told:
        config.stash[FOLDER] = Path(told)
        return
    folder = config.stash[FOLDER] = Path(tempfile.mkdtemp(prefix="pstk-"))
    config.stash[GUARD] = subprocess.Popen(
        ["sh", "-c", TO_THE_END, "sh", str(folder), sys.executable],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=clean_environment(),
        start_new_session=True,
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["servers"] = str(node.config.stash[FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    guard = config.stash.get(GUARD, None)
    if guard is not None and guard.stdin is not None:
        guard.stdin.close()
        if guard.wait(STOPPED_WITHIN_S):
            raise RuntimeError(f"the servers of this run, in {config.stash[FOLDER]}, could not be stopped")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple) and LEFT_OUT in report.longrepr[2]:
            reason = report.longrepr[2].partition(LEFT_OUT)[2]
            reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("left out")
        for reason, count in reasons.items():
            terminalreporter.line(f"{count} tests: {reason}")
