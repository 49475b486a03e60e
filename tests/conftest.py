"""Fixtures that several packages' tests share."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import uvloop

from tests.production import Lent, Production
from tests.running import DISTRIBUTED, EMBEDDED, RunningServer, running
from tests.services import (
    Servers,
    amqp_url,
    broker,
    jaeger_,
    mongo_url,
    own_broker,
    own_mongo,
    prometheus_,
    pytest_configure,
    pytest_configure_node,
    pytest_terminal_summary,
    pytest_unconfigure,
    ray_address,
    servers,
    toxiproxy,
)
from tests.toxics import Toxics

__all__ = [
    "amqp_url",
    "broker",
    "jaeger_",
    "mongo_url",
    "own_mongo",
    "prometheus_",
    "pytest_configure",
    "pytest_configure_node",
    "pytest_terminal_summary",
    "pytest_unconfigure",
    "ray_address",
    "servers",
    "toxiproxy",
]


@pytest.fixture(scope="session")
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with both sample models, for every test that needs none of its own: the embedded one, or for the modules
    that ask for it (`BOTH_SHAPES`) the production shape too. Of the processes that share a run of the tests the first
    one's server trains the samples, and the others' find them trained."""
    if getattr(request, "param", EMBEDDED) == DISTRIBUTED:
        yield request.getfixturevalue("lent").borrow().server
        return
    home = tmp_path_factory.mktemp("server") / "home"
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    trained = run / "trained"
    with ExitStack() as stack:
        with (run / "training").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if trained.exists():
                shutil.copytree(trained, home / "samples")
            server = stack.enter_context(running(home))
            if not trained.exists():
                shutil.copytree(home / "samples", trained)
        yield server


LENT = pytest.StashKey[Lent]()


@pytest.fixture(scope="session")
def lent(pytestconfig: pytest.Config, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lent]:
    """The production shape with both samples; its broker is its own, and the way there goes through toxiproxy."""

    @contextmanager
    def start() -> Iterator[Production]:
        servers.prepare()
        with own_broker(pytestconfig) as broker, Toxics(servers.url("toxiproxy")) as toxics:
            way = toxics.link(broker.url)
            home = tmp_path_factory.mktemp("production") / "home"
            with running(home, "--distributed", amqp_url=way.url, keep_alive_s="2") as server:
                yield Production(server, broker, way)

    lent = pytestconfig.stash[LENT] = Lent(start)
    yield lent
    lent.close()


@pytest.fixture(scope="module")
def production(lent: Lent) -> Production:
    return lent.borrow()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """It costs a core by just being there: it goes with the last test that needs it."""
    lent = item.config.stash.get(LENT, None)
    last = nextitem is None or not in_production(nextitem.nodeid)
    if lent is not None and in_production(item.nodeid) and last:
        lent.close()


IN_PRODUCTION = frozenset({"test_distributed.py", "test_faults.py", "test_traces.py"})
"""Modules about the production shape and nothing else; of others those tests ask for it whose id says so."""


def in_production(nodeid: str) -> bool:
    """Whether a test asks for the production shape: one process of the run has it for all of them."""
    file, _, test = nodeid.partition("::")
    return Path(file).name in IN_PRODUCTION or DISTRIBUTED in re.split(r"[\[\]-]", test)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each module to one process, and all that ask for the production shape together to one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "production" if in_production(nodeid) else str(super()._split_scope(nodeid))

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")
"""How long an example takes says more of the machine's other work than of what is tested."""

httpx._config.DEFAULT_LIMITS.keepalive_expiry = 0.5
"""Of every client here: servers under test close an idle connection after two seconds, perhaps in the moment that it is
used again."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it leaves in the background so, and programs that tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ON_BOTH_LOOPS = frozenset({"test_http.py", "test_transports.py"})
"""What leans on how a loop reads and writes is tested on the server's loop and on Python's own."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else loops
