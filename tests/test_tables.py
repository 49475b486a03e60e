"""The tables in the documents say what the code does."""

from __future__ import annotations

import pytest

from tests.tables import DOCS, PAGES, placed


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_code(page: str) -> None:
    """Errors and settings stand in the documents as they are (`python -m tests.tables` writes them)."""
    assert (DOCS / f"{page}.md").read_text() == placed(page)
