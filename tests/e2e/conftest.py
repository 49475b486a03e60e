"""The shared server, and what every test from outside needs of it: an SDK client, keys, models of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import penstock
import pytest
from penstock.client import Client

from tests.e2e.artifacts import PYTHON, SIGNATURES
from tests.e2e.attacks import FURNITURE, LIMITS, Target, furnish
from tests.graphs import ELEMENTS, identity
from tests.production import Lent, fronts, gateways_beside, informed, left_as_it_was, logged, settled, waited
from tests.running import DISTRIBUTED, EMBEDDED, RunningServer, running


@pytest.fixture(scope="session")
def ps(running_server: RunningServer) -> Iterator[Client]:
    """The SDK with the server's first key."""
    with _client(running_server) as client:
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
        list(pushing.map(lambda name: ps.push(files / f"{name}.onnx", name), names.values()))
    return names


@pytest.fixture(scope="session")
def classes(ps: Client, files: Path) -> dict[str, str]:
    """Class of `models.py` → the name of the model made of it."""
    names = {"Parameters": "parameters", "Passthrough": "passthrough"}
    for entry, name in names.items():
        push_class(ps, files, entry, name)
    return names


def push_class(ps: Client, files: Path, entry: str, name: str, **options: Any) -> dict[str, Any]:
    return ps.push(f"{files / 'models.py'}:{entry}", name, signature=SIGNATURES[entry], allow_code=True, **options)


SMALL = {name: str(value) for name, value in LIMITS.items()}


@pytest.fixture(scope="module", params=[EMBEDDED, DISTRIBUTED])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A real server with small limits: all in one process, then gateways of the production shape."""
    folder = tmp_path_factory.mktemp("victim")
    if request.param == EMBEDDED:
        with running(folder / "home", samples="false", **SMALL) as server, _client(server) as ps:
            yield _target(ps, server, server.home)
        return
    lent: Lent = request.getfixturevalue("lent")
    production = lent.borrow()
    with ExitStack() as stack:
        lent.close_first(stack)
        home = production.server.home
        server = stack.enter_context(gateways_beside(production, home / folder.name, **SMALL))
        ps = stack.enter_context(_client(server))
        stack.enter_context(left_as_it_was(ps, kept=FURNITURE))
        yield _target(ps, server, home, production.server)


def _client(server: RunningServer) -> Client:
    client = penstock.connect(server.url, control=server.control, api_key=server.api_key)
    return settled(client) if server.distributed else client


def _target(ps: Client, server: RunningServer, home: Path, *others: RunningServer) -> Target:
    """`others`: what of the same shape was started apart."""
    servers = (server, *others)
    key = ps.keys.create("stranger", role="deploy")["key"]
    waited(lambda: informed(ps, fronts(server)))
    target = Target(
        url=server.url,
        grpc=server.grpc,
        control=server.control,
        key=key,
        coder=server.api_key,
        home=home,
        logs=frozenset(each.log for each in servers),
        logged=lambda: "".join(map(logged, servers)),
        processes=[process for each in servers for process in fronts(each)],
    )
    asyncio.run(furnish(target))
    return target
