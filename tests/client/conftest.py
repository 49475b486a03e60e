"""A fake server, and one client of it in both its forms."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import penstock
import pytest
from penstock.config import NAMES

from tests.client.fake import FakeServer, fake_server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PENSTOCK_HOME, and no other setting."""
    folder = tmp_path / "home"
    folder.mkdir()
    for variable in NAMES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PENSTOCK_HOME", str(folder))
    return folder


class Blocking:
    """The asynchronous client behind the calls of the other, so that one suite holds both to their promises."""

    def __init__(self, client: Any, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name == "keys":
            return Blocking(found, self._runner)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *values, **named: self._runner.run(found(*values, **named))


@pytest.fixture(params=["sync", "async"])
def ps(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Any]:
    """A client with a good key, in both forms."""
    if request.param == "sync":
        with penstock.connect(server.url, api_key=server.key) as client:
            yield client
    else:
        with asyncio.Runner() as runner:
            other = penstock.connect_async(server.url, api_key=server.key)
            yield Blocking(other, runner)
            runner.run(other.close())
