"""What toxiproxy is told over HTTP: links to a server of which a test decides how bad they are."""

from __future__ import annotations

import json
import urllib.request
import uuid
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

DIRECTIONS = ("upstream", "downstream")
"""To the server, and from it."""


class Link:
    """A way to a server. `url`: that server's, but through this link."""

    def __init__(self, api: str, name: str, url: str) -> None:
        self.url = url
        self._proxy = f"{api}/proxies/{name}"

    def cut(self) -> None:
        """Close its connections and refuse new ones."""
        _call("POST", self._proxy, {"enabled": False})

    def mend(self) -> None:
        """Whole again: nothing cut, held, delayed or limited."""
        for toxic in _call("GET", f"{self._proxy}/toxics"):
            _call("DELETE", f"{self._proxy}/toxics/{toxic['name']}")
        _call("POST", self._proxy, {"enabled": True})

    def hold(self) -> None:
        """Half-open: connections stay, and can be made, but no byte arrives, in neither direction."""
        self._poison("timeout", timeout=0)

    def latency(self, milliseconds: int, jitter: int = 0) -> None:
        """In each direction."""
        self._poison("latency", latency=milliseconds, jitter=jitter)

    def bandwidth(self, kilobytes_per_second: int) -> None:
        self._poison("bandwidth", rate=kilobytes_per_second)

    def limit(self, size: int) -> None:
        """Close a connection once `size` bytes have gone through it in one direction."""
        self._poison("limit_data", bytes=size)

    def _poison(self, kind: str, **attributes: int) -> None:
        for stream in DIRECTIONS:
            toxic = {"name": f"{kind}-{stream}", "type": kind, "stream": stream, "attributes": attributes}
            _call("POST", f"{self._proxy}/toxics", toxic)


class Toxics:
    """A context manager: at its end the links that it made are gone."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._names: list[str] = []

    def __enter__(self) -> Toxics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in self._names:
            _call("DELETE", f"{self._api}/proxies/{name}")

    def link(self, url: str) -> Link:
        """A new way to the server of this URL (amqp://, mongodb://, http://)."""
        parts = urlsplit(url)
        name = uuid.uuid4().hex
        made = _call(
            "POST",
            f"{self._api}/proxies",
            {"name": name, "listen": "127.0.0.1:0", "upstream": f"{parts.hostname}:{parts.port}", "enabled": True},
        )
        self._names.append(name)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return Link(self._api, name, parts._replace(netloc=f"{userinfo}{at}{made['listen']}").geturl())


def _call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method=method, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        content = answer.read()
    return json.loads(content) if content else None
