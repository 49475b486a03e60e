"""Jaeger and Prometheus as tests ask them."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""Of JSON."""


class Traces:
    """A Jaeger. `url`: of its query API; `otlp`: where spans go, by gRPC."""

    def __init__(self, url: str, otlp: str) -> None:
        self.url = url
        self.otlp = otlp

    def of(self, service: str, limit: int = 100) -> list[Row]:
        """The last traces of a service, each with its `spans` and `processes`."""
        found: list[Row] = _get(f"{self.url}/api/traces", service=service, limit=limit)["data"]
        return found

    def services(self) -> set[str]:
        return set(_get(f"{self.url}/api/services")["data"] or [])


class Metrics:
    """A Prometheus. `folder`: where processes leave their addresses."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def value(self, expression: str) -> dict[str, float]:
        """What an expression of PromQL yields now: labels as JSON → value."""
        rows = _get(f"{self.url}/api/v1/query", query=expression)["data"]["result"]
        return {json.dumps(row["metric"], sort_keys=True): float(row["value"][1]) for row in rows}

    def targets(self) -> list[Row]:
        """Those that are scraped, each with its `labels`, `health` and `lastError`."""
        found: list[Row] = _get(f"{self.url}/api/v1/targets", state="active")["data"]["activeTargets"]
        return found

    def up(self) -> set[str]:
        """Kinds of processes of which one at least is scraped without an error."""
        return {target["labels"]["process"] for target in self.targets() if target["health"] == "up"}

    @contextmanager
    def scraped(self, port: int, **labels: str) -> Iterator[None]:
        """A process of this machine has left its address."""
        file = self.folder / f"test-{uuid.uuid4().hex}.json"
        file.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": labels}]))
        yield
        file.unlink()


def _get(url: str, **query: object) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
        return json.load(answer)
