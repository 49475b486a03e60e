"""Fixtures of the tests of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from structlog.typing import EventDict


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[EventDict]]:
    """What was logged during a test."""
    with structlog.testing.capture_logs() as entries:
        yield entries
