"""toxiproxy: cuts, delays and throttles TCP links, told how over HTTP. Built from `deploy/services/toxiproxy`."""

from __future__ import annotations

from typing import ClassVar

from server.servers.base import Container, Launch, Say, Server, says_ok
from server.servers.obtaining import GoProgram
from server.servers.places import Place

PROGRAM = GoProgram("toxiproxy", "github.com/Shopify/toxiproxy/v2", "github.com/Shopify/toxiproxy/v2/cmd/server")


class Toxiproxy(Server):
    name: ClassVar[str] = "toxiproxy"
    title: ClassVar[str] = "toxiproxy"
    variable: ClassVar[str] = "PENSTOCK_TOXIPROXY_URL"
    image_name: ClassVar[str] = "ghcr.io/shopify/toxiproxy:2.12.0"
    start_within_s: ClassVar[float] = 20.0

    def version(self) -> str:
        return PROGRAM.version

    def obtain(self, say: Say, may_install: bool) -> None:
        PROGRAM.build(say)

    def launch(self, place: Place) -> Launch:
        port = place.port("port")
        argv = (str(PROGRAM.path), "-host", "127.0.0.1", "-port", str(port))
        return Launch(argv, f"http://127.0.0.1:{port}", {"LOG_LEVEL": "warn"})

    def container(self, place: Place) -> Container:
        """On the machine's own network: its proxies get ports later, and what they lead to is on loopback."""
        port = place.port("port")
        arguments = ("-host", "127.0.0.1", "-port", str(port))
        return Container(f"http://127.0.0.1:{port}", {}, arguments, network="host")

    def answers(self, url: str, place: Place) -> bool:
        return says_ok(f"{url}/version")
