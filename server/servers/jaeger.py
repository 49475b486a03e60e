"""Jaeger, all in one: takes spans by OTLP, keeps the last traces in memory, shows them. Built from
`deploy/services/jaeger`: that one has the query API, the container has the web pages too.

Every port that it would open on all interfaces is put on loopback; the pages' port is the URL.
"""

from __future__ import annotations

from typing import ClassVar

from server.servers.base import Container, Launch, Say, Server, connects, says_ok
from server.servers.obtaining import GoProgram
from server.servers.places import Place

PROGRAM = GoProgram("jaeger", "github.com/jaegertracing/jaeger", "github.com/jaegertracing/jaeger/cmd/all-in-one")
LISTENERS = {
    "port": "query.http-server",
    "query grpc": "query.grpc-server",
    "otlp grpc": "collector.otlp.grpc",
    "otlp http": "collector.otlp.http",
    "collector grpc": "collector.grpc-server",
    "collector http": "collector.http-server",
    "admin": "admin.http",
}
"""Port of its place → the option's beginning. Zipkin's port is closed unless it is asked for."""
MAX_TRACES = 10_000
"""The oldest go first. A trace of a request has a handful of spans, of about a kilobyte each."""
SILENT = {"SPAN_STORAGE_TYPE": "memory", "OTEL_TRACES_SAMPLER": "always_off"}
"""It would trace itself as well, and send that to whoever listens on OTLP's usual port."""


class Jaeger(Server):
    """Without a password: whoever may connect to loopback may send spans and read them."""

    name: ClassVar[str] = "jaeger"
    title: ClassVar[str] = "Jaeger"
    variable: ClassVar[str] = "PENSTOCK_JAEGER_URL"
    image_name: ClassVar[str] = "jaegertracing/all-in-one:1.70.0"
    start_within_s: ClassVar[float] = 30.0

    def version(self) -> str:
        return PROGRAM.version

    def obtain(self, say: Say, may_install: bool) -> None:
        PROGRAM.build(say)

    def launch(self, place: Place) -> Launch:
        listen = [f"--{option}.host-port=127.0.0.1:{place.port(name)}" for name, option in LISTENERS.items()]
        argv = (str(PROGRAM.path), *listen, "--collector.zipkin.host-port=", *_bounded())
        return Launch(argv, f"http://127.0.0.1:{place.port('port')}", SILENT, _exports(place))

    def container(self, place: Place) -> Container:
        ports = {place.port("port"): 16686, place.port("otlp grpc"): 4317, place.port("otlp http"): 4318}
        inside = ("--collector.otlp.grpc.host-port=:4317", "--collector.otlp.http.host-port=:4318", *_bounded())
        url = f"http://127.0.0.1:{place.port('port')}"
        return Container(url, ports, inside, environment=SILENT, exports=_exports(place))

    def answers(self, url: str, place: Place) -> bool:
        """It takes spans, and tells of them."""
        taking = connects(f"127.0.0.1:{place.remembered('otlp grpc')}")
        if taking is None:
            return False
        taking.close()
        return says_ok(f"{url}/api/services")


def _bounded() -> tuple[str, ...]:
    return (f"--memory.max-traces={MAX_TRACES}", "--log-level=warn")


def _exports(place: Place) -> dict[str, str]:
    """What OpenTelemetry's exporters read."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{place.port('otlp grpc')}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
