"""Fixtures that several packages' tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

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
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One embedded server with both sample models, for every test that needs none of its own."""
    with running(tmp_path_factory.mktemp("server") / "home") as server:
        yield server


ON_BOTH_LOOPS = frozenset({"test_http.py", "test_transports.py"})
"""What leans on how a loop reads and writes is tested on the server's loop and on Python's own."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else loops
