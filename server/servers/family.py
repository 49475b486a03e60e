"""The servers that Penstock knows to start, in the order they are shown."""

from __future__ import annotations

from server.servers.base import Server
from server.servers.ferretdb import FerretDB
from server.servers.jaeger import Jaeger
from server.servers.prometheus import Prometheus
from server.servers.rabbitmq import RabbitMQ
from server.servers.ray_head import RayHead
from server.servers.toxiproxy import Toxiproxy


def family() -> tuple[Server, ...]:
    return (RabbitMQ(), FerretDB(), Toxiproxy(), RayHead(), Jaeger(), Prometheus())
