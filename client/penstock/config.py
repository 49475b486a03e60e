"""Where the server is and which key it gets: arguments, then PENSTOCK_* variables, then client.toml.

A key goes only to the server it was meant for. The key of client.toml belongs to the addresses of client.toml; the
key of the environment to PENSTOCK_URL (and PENSTOCK_CONTROL), where it is set; a key given in the call to that call.
Where an address was overridden without its key, the key stays at home and the error says what to set.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from penstock.errors import NotConfigured

NAMES = {"url": "PENSTOCK_URL", "grpc": "PENSTOCK_GRPC", "control": "PENSTOCK_CONTROL", "api_key": "PENSTOCK_API_KEY"}
"""Key in client.toml → environment variable."""
DEFAULT_HOME = ".penstock"
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """One server address and the key that may go there; `missing` says why there is no key."""

    url: str
    key: str | None = field(default=None, repr=False)
    missing: str = ""


@dataclass(frozen=True)
class Config:
    """`data` serves V2 (predictions), `control` serves /api/v1, `grpc` is host:port, "" where none is known."""

    data: Target
    control: Target
    grpc: str = ""


@dataclass(frozen=True)
class _Layer:
    """One place where settings stand: `origin` names it in messages."""

    origin: str
    values: Mapping[str, str]

    @property
    def homes(self) -> set[str]:
        """The servers that this layer's key is meant for; none where the layer names no server for it."""
        if "url" not in self.values:
            return set()
        return {server_of(self.values[name]) for name in ("url", "control") if name in self.values}


def read(
    url: str | None = None,
    api_key: str | None = None,
    control: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The addresses and keys in force. Raises NotConfigured where there is no address, or one that is none."""
    environ = os.environ if environ is None else environ
    given = {"url": url, "control": control, "api_key": api_key}
    layers = [
        _Layer("the call", {name: value for name, value in given.items() if value}),
        _Layer(
            "the environment", {name: environ[variable] for name, variable in NAMES.items() if environ.get(variable)}
        ),
        _from_file(Path(environ.get("PENSTOCK_HOME") or DEFAULT_HOME) / "client.toml"),
    ]
    for layer in layers:
        check_addresses(layer)
    return Config(_target(_data_url(layers), layers), _target(_control_url(layers), layers), _first("grpc", layers))


def _from_file(path: Path) -> _Layer:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _Layer(str(path), {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise NotConfigured(f"{path} cannot be read: {error}") from None
    wrong = [name for name in NAMES if not isinstance(content.get(name, ""), str)]
    if wrong:
        raise NotConfigured(f"{path}: {wrong[0]} must be a text")
    return _Layer(str(path), {name: content[name] for name in NAMES if content.get(name)})


def check_addresses(layer: _Layer) -> None:
    """Raise NotConfigured that names an address of the layer which is none."""
    for name in ("url", "control"):
        if name in layer.values:
            _split(layer.values[name], f"{name} from {layer.origin}")


def _first(name: str, layers: list[_Layer]) -> str:
    return next((layer.values[name] for layer in layers if name in layer.values), "")


def _data_url(layers: list[_Layer]) -> str:
    found = _first("url", layers)
    if not found:
        raise NotConfigured(
            f"no server is known: set PENSTOCK_URL and PENSTOCK_API_KEY, or PENSTOCK_HOME to the folder that holds "
            f"client.toml (looked for {layers[-1].origin}); `penstock up` starts a server and writes that file"
        )
    return found.rstrip("/")


def _control_url(layers: list[_Layer]) -> str:
    """The control address named nearest, passing over those that belong to a server which was overridden."""
    url, overridden = _data_url(layers), False
    for layer in layers:
        control = layer.values.get("control")
        if control and (not overridden or server_of(url) in layer.homes):
            return control.rstrip("/")
        overridden = overridden or "url" in layer.values
    return url


def _target(url: str, layers: list[_Layer]) -> Target:
    server, refused = server_of(url), ""
    for layer in layers:
        key = layer.values.get("api_key")
        if key is None:
            continue
        if layer.homes and server not in layer.homes:
            refused = refused or f"the key of {layer.origin} is meant for {' and '.join(sorted(layer.homes))}"
            continue
        return Target(url, _checked(key, layer.origin))
    why = refused or "no key is known"
    return Target(url, missing=f"{why}, so {server} gets none: set PENSTOCK_API_KEY to a key of that server")


def _checked(key: str, origin: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise NotConfigured(f"the key of {origin} holds a character that no key has (a line break, perhaps)")
    return key


def server_of(url: str) -> str:
    """Scheme, host and port in one form, by which two addresses are the same server or not."""
    parts = _split(url, "the address")
    return f"{parts.scheme}://{parts.hostname}:{parts.port or PORTS[parts.scheme]}"


def _split(url: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        known = parts.scheme in PORTS and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = None
    if not known:
        raise NotConfigured(f"{what} is no address: {url!r}; one looks like http://127.0.0.1:8080")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise NotConfigured(
            f"{what}: an address holds no name, password, query or fragment; the key has its own setting"
        )
    return parts
