"""What the production shape is watched with: Jaeger and Prometheus. Where one cannot be had, it serves all the same."""

from __future__ import annotations

from collections.abc import Mapping

from server.servers.choice import masked
from server.servers.jaeger import Jaeger
from server.servers.prometheus import Prometheus

SHOWS = {
    Jaeger.name: ("traces", Jaeger.title),
    Prometheus.name: ("metrics", Prometheus.title),
}
PAGES = {Jaeger.name: " (pages in a container only; its API: /api/services, /api/traces/ID)"}
ELSEWHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables that say where spans go."""


def chosen(environment: Mapping[str, str]) -> str:
    """Those to have, separated by commas: no Jaeger where spans go elsewhere already."""
    elsewhere = any(environment.get(variable) for variable in ELSEWHERE) and not environment.get(Jaeger.variable)
    return Prometheus.name if elsewhere else ",".join(SHOWS)


def done_without(failed: dict[str, str]) -> list[str]:
    """Take them out of `failed` (name → why it could not be had). Returns a line for each."""
    gone = {title: failed.pop(name) for name, (_, title) in SHOWS.items() if name in failed}
    return [f"going on without {title}: {why.splitlines()[0]}" for title, why in gone.items()]


def greeting(urls: Mapping[str, str]) -> list[str]:
    """A line for each of `urls` (name → URL)."""
    return [
        f"  {what:<7}  {masked(urls[name])}      {title}{PAGES.get(name, '')}"
        for name, (what, title) in SHOWS.items()
        if name in urls
    ]
