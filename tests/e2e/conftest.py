"""The shared server, and what every test from outside needs of it: an SDK client, keys, models of each kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import penstock
import pytest
from penstock.client import Client
from penstock.errors import Unavailable

from tests.e2e.artifacts import PYTHON, SIGNATURES
from tests.e2e.attacks import LIMITS, Target, furnish
from tests.graphs import ELEMENTS, identity
from tests.running import RunningServer, running

T = TypeVar("T")


@pytest.fixture(scope="session")
def ps(running_server: RunningServer) -> Iterator[Client]:
    """The SDK with the server's first key."""
    server = running_server
    with penstock.connect(server.url, control=server.control, api_key=server.api_key) as client:
        yield client


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `models.py`, the classes to push, and an ONNX identity for each datatype."""
    folder = tmp_path_factory.mktemp("artifacts")
    (folder / "models.py").write_text(PYTHON)
    for datatype in ELEMENTS:
        (folder / f"identity-{datatype.lower()}.onnx").write_bytes(identity(datatype))
    return folder


@pytest.fixture(scope="session")
def identities(ps: Client, files: Path) -> dict[str, str]:
    """Datatype → the name of a model that answers what it is given."""
    names = {datatype: f"identity-{datatype.lower()}" for datatype in ELEMENTS}
    with ThreadPoolExecutor(2) as pushing:
        list(pushing.map(lambda name: patiently(lambda: ps.push(files / f"{name}.onnx", name)), names.values()))
    return names


def patiently(work: Callable[[], T]) -> T:
    """As a client does who is told to come again: a machine that starts twenty replicas answers some things late."""
    for _ in range(10):
        with suppress(Unavailable):
            return work()
        time.sleep(1)
    return work()


@pytest.fixture(scope="session")
def classes(ps: Client, files: Path) -> dict[str, str]:
    """Class of `models.py` → the name of the model made of it."""
    names = {"Parameters": "parameters", "Passthrough": "passthrough"}
    for entry, name in names.items():
        push_class(ps, files, entry, name)
    return names


def push_class(ps: Client, files: Path, entry: str, name: str, **options: Any) -> dict[str, Any]:
    return ps.push(f"{files / 'models.py'}:{entry}", name, signature=SIGNATURES[entry], allow_code=True, **options)


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A real server in a process of its own, with small limits."""
    home = tmp_path_factory.mktemp("victim") / "home"
    settings = {name: str(value) for name, value in LIMITS.items()}
    with running(home, samples="false", **settings) as server:
        with penstock.connect(server.url, api_key=server.api_key) as ps:
            key = ps.keys.create("stranger", role="deploy")["key"]
        target = Target(server.url, server.grpc, key, server.api_key, home, server.log, server.pid)
        asyncio.run(furnish(target))
        yield target
