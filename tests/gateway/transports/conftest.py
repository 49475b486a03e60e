"""Fixtures of the tests of transports."""

from __future__ import annotations

from tests.workers.conftest import logged

__all__ = ["logged"]
