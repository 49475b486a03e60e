"""What a server is: how it is had, started and asked whether it answers. One file for each; `family.py` lists them.

To add one: a subclass that names itself and gives `version`, `launch` and `answers`; `obtain` where it has to be
built or installed, `image_name` and `container` where an engine may run it, `stop` where more than its
processes has to go.
"""

from __future__ import annotations

import socket
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple
from urllib.parse import urlsplit

from server.servers import processes
from server.servers.places import Place, Running

Say = Callable[[str], None]
"""Takes what is being done now, for the display."""


class Launch(NamedTuple):
    """A program to start. `exports`: variables that clients need beside the URL."""

    argv: tuple[str, ...]
    url: str
    environment: Mapping[str, str] = {}
    exports: Mapping[str, str] = {}


class Container(NamedTuple):
    """A container to start. `ports`: port of loopback → port inside; they are published.

    `network`: "host" shares the machine's network, for what opens ports as it goes.
    `arguments` come after the image, `volume` is the folder inside that is kept, `files` maps what is ours
    to where they are read inside. `exports`: variables that clients need beside the URL.
    """

    url: str
    ports: Mapping[int, int]
    arguments: tuple[str, ...] = ()
    volume: str = ""
    files: Mapping[str, str] = {}
    network: str = ""
    environment: Mapping[str, str] = {}
    exports: Mapping[str, str] = {}


class Server(ABC):
    """Stateless: all that is remembered of a started one stands in its `Place`."""

    name: ClassVar[str]
    """Of its folder and on the command line."""
    title: ClassVar[str]
    variable: ClassVar[str]
    """Holds its URL: where it is set, the server is not started."""
    image_name: ClassVar[str] = ""
    """With its version; '' where it is never started in a container."""
    start_within_s: ClassVar[float] = 60.0
    stop_within_s: ClassVar[float] = 10.0
    attempts: ClassVar[int] = 1
    """How often it is started before it is given up."""

    @abstractmethod
    def version(self) -> str:
        """Of what `launch` would start."""

    def obtain(self, say: Say, may_install: bool) -> None:  # noqa: B027 - not every server has to be had first
        """Build or install it where it is missing. Raises Unavailable, in one sentence, where it cannot be had."""

    @abstractmethod
    def launch(self, place: Place) -> Launch:
        """How it is started natively; writes the files that it needs first."""

    def container(self, place: Place) -> Container:
        """How it is started where a container engine answers; called only where there is an `image_name`."""
        raise NotImplementedError

    @abstractmethod
    def answers(self, url: str, place: Place) -> bool:
        """Whether it serves, asked once and within a few seconds."""

    def stop(self, place: Place, running: Running) -> list[str]:
        """End a native one with all its processes. Returns the names of those that had to be killed."""
        return processes.stop(running.birth, place.mark, self.stop_within_s)


def connects(url: str, timeout_s: float = 2.0) -> socket.socket | None:
    """A connection to the URL's host and port, None where nobody listens."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        return socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 0), timeout_s)
    except OSError:
        return None


def says_ok(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a GET of the URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - http, on loopback
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
