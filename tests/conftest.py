"""Fixtures that several packages' tests share."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import uvloop

from tests.running import RunningServer, running
from tests.services import (
    amqp_url,
    broker,
    mongo_url,
    own_mongo,
    pytest_configure,
    pytest_configure_node,
    pytest_terminal_summary,
    pytest_unconfigure,
    ray_address,
    servers,
    toxiproxy,
)

__all__ = [
    "amqp_url",
    "broker",
    "mongo_url",
    "own_mongo",
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
    home = tmp_path_factory.mktemp("server") / "home"
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    trained = run / "trained"
    with ExitStack() as stack:
        with (run / "training").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if trained.exists():
                shutil.copytree(trained, home / "samples")
            server = stack.enter_context(running(home, *getattr(request, "param", ())))
            if not trained.exists():
                shutil.copytree(home / "samples", trained)
        yield server


ON_BOTH_LOOPS = frozenset({"test_http.py", "test_transports.py"})
"""What leans on how a loop reads and writes is tested on the server's loop and on Python's own."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else loops
