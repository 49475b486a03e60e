"""The tables in docs/ that are made from the code. `python -m tests.tables` writes them anew; a test compares."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import core.errors
from core.settings import Settings
from core.status import TABLE
from core.telemetry import ATTRIBUTES, COUNTER, METRICS

DOCS = Path(__file__).parent.parent / "docs"
ESSAY = re.compile(r"[├└]── (\w+)\s+(.+)")


def errors() -> str:
    """Class by class, in the words of the tree at the top of `core/errors.py`."""
    meanings = dict(ESSAY.findall(core.errors.__doc__ or ""))
    rows = [f"| {meanings[error.__name__]} | {status.http} | `{status.grpc}` |" for error, status in TABLE.items()]
    return "\n".join(["| what happened | HTTP | gRPC |", "|---|---|---|", *rows])


def settings() -> str:
    rows = [
        f"| `PENSTOCK_{name.upper()}` | {_default(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | |", "|---|---|---|", *rows])


def _default(value: object) -> str:
    return "" if value is None else f"`{value}`"


def telemetry() -> str:
    """Metrics, then what spans say, as `core/telemetry.py` lists them."""
    metrics = [
        f"| `{metric.name}{'_total' if metric.kind == COUNTER else ''}` | {metric.kind} | "
        f"{', '.join(metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    attributes = [f"| `{attribute.name}` | {attribute.help} |" for attribute in ATTRIBUTES]
    head = ["| metric | kind | labels | |", "|---|---|---|---|"]
    return "\n".join([*head, *metrics, "", "| attribute of a span | |", "|---|---|", *attributes])


PAGES: dict[str, Callable[[], str]] = {"errors": errors, "settings": settings, "telemetry": telemetry}


def placed(page: str) -> str:
    """The page's text with its table as the code has it."""
    text = (DOCS / f"{page}.md").read_text()
    pattern = re.compile(rf"(<!-- table: {page} -->\n).*?(\n<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"docs/{page}.md has no place for its table"
    return pattern.sub(lambda found: found[1] + PAGES[page]() + found[2], text)


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / f"{page}.md").write_text(placed(page))
