"""RabbitMQ: from the system's package, run under our own user and folder, or in a container.

The package's `rabbitmq-server` on the PATH changes user and drops the environment; the script that it calls does not,
so that one is run. Without the settings below the node would take its configuration from /etc, its cookie from the
home directory, share the machine's port mapper (epmd) and listen for other nodes on all interfaces.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from core.errors import Unavailable
from server.servers import obtaining
from server.servers.base import Container, Launch, Say, Server, connects
from server.servers.places import Place

SCRIPTS = Path("/usr/lib/rabbitmq/bin")
"""Of the package in Debian and Ubuntu: the real ones, not the wrappers on the PATH."""
NODE = "penstock@localhost"
USER = "penstock"
PORTS = ("port", "management", "distribution", "epmd")
GREETING = b"AMQP\x00\x00\x09\x01"
CONTROL_WITHIN_S = 60.0


class RabbitMQ(Server):
    """The URL's user is made with a password of its own at the first start; the usual `guest` never is."""

    name: ClassVar[str] = "rabbitmq"
    title: ClassVar[str] = "RabbitMQ"
    variable: ClassVar[str] = "PENSTOCK_AMQP_URL"
    image_name: ClassVar[str] = "rabbitmq:4.1.4-management"
    start_within_s: ClassVar[float] = 180.0
    stop_within_s: ClassVar[float] = 30.0

    def version(self) -> str:
        found = re.search(r"rabbitmq_server-([\d.]+)", str((SCRIPTS / "rabbitmq-server").resolve()))
        return found[1] if found else "unknown"

    def obtain(self, say: Say, may_install: bool) -> None:
        if not (SCRIPTS / "rabbitmq-server").exists():
            obtaining.install("rabbitmq", self.title, may_install, say)

    def launch(self, place: Place) -> Launch:
        password = place.secret("password")
        port, management, *_ = (place.port(name) for name in PORTS)
        place.write("enabled_plugins", "[rabbitmq_management].\n")
        place.write(
            "rabbitmq.conf",
            f"{_user(password)}listeners.tcp.1 = 127.0.0.1:{port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\nmanagement.rates_mode = none\n",
        )
        url = f"amqp://{USER}:{password}@127.0.0.1:{port}/"
        return Launch((str(SCRIPTS / "rabbitmq-server"),), url, _environment(place))

    def container(self, place: Place) -> Container:
        password, port = place.secret("password"), place.port("port")
        place.inner("conf.d")
        settings = place.write("conf.d/20-penstock.conf", _user(password), mode=0o644)
        return Container(
            f"amqp://{USER}:{password}@127.0.0.1:{port}/",
            {port: 5672, place.port("management"): 15672},
            volume="/var/lib/rabbitmq",
            files={str(settings): f"/etc/rabbitmq/conf.d/{settings.name}"},
        )

    def answers(self, url: str, place: Place) -> bool:
        """A broker opens its port last, and then answers a greeting by a frame of method 10.10, connection.start."""
        connection = connects(url)
        if connection is None:
            return False
        with connection:
            try:
                connection.sendall(GREETING)
                return connection.recv(11)[7:11] == b"\x00\x0a\x00\x0a"
            except OSError:
                return False


def control(place: Place, *words: str) -> str:
    """What `rabbitmqctl WORDS` prints for the node of this place, started natively. Raises Unavailable."""
    try:
        done = subprocess.run(
            [str(SCRIPTS / "rabbitmqctl"), "--quiet", *words],
            env={**os.environ, **_environment(place)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CONTROL_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`rabbitmqctl {words[0]}` took longer than {CONTROL_WITHIN_S:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"`rabbitmqctl {words[0]}` failed: {done.stdout.strip()}")
    return done.stdout


def management_url(place: Place) -> str:
    """Of the management plugin's HTTP API, with the same user and password."""
    return f"http://127.0.0.1:{place.remembered('management')}"


def credentials(url: str) -> tuple[str, str]:
    """User and password of an AMQP URL."""
    parts = urlsplit(url)
    return parts.username or "", parts.password or ""


def _user(password: str) -> str:
    return f"default_user = {USER}\ndefault_pass = {password}\n"


def _environment(place: Place) -> dict[str, str]:
    """Of the node and of what controls it. The cookie is what lets a process join the node: it stays in the folder."""
    home = place.inner("home")
    cookie = home / ".erlang.cookie"
    if not cookie.exists():
        place.write("home/.erlang.cookie", place.secret("cookie"), mode=0o400)
    return {
        "HOME": str(home),
        "RABBITMQ_NODENAME": NODE,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": place.remembered("port"),
        "RABBITMQ_DIST_PORT": place.remembered("distribution"),
        "RABBITMQ_MNESIA_BASE": str(place.inner("data")),
        "RABBITMQ_LOG_BASE": str(place.inner("logs")),
        "RABBITMQ_CONFIG_FILE": str(place.folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(place.folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(place.folder / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(place.folder / "pid"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RUNNING_UNDER_SYSTEMD": "true",  # no shell in between: the node itself is what is signalled
        "ERL_EPMD_PORT": place.remembered("epmd"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
