"""Fixtures that several packages' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.running import RunningServer, running


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One embedded server with both sample models, for every test that needs none of its own."""
    with running(tmp_path_factory.mktemp("server") / "home") as server:
        yield server
