"""Each request to a server as a value: what is asked, and how its answer is read. No clock, no socket.

`Client` and `AsyncClient` send the same calls; nothing about the protocol is written twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from penstock import wire
from penstock.errors import BY_STATUS, ServerError, UnexpectedAnswer
from penstock.names import check_alias, check_model, check_version

T = TypeVar("T")
Record = dict[str, Any]
"""A record of the server as its JSON has it."""

LONG = 900.0
"""Seconds that a call which loads or unloads a version may take: longer than any server's own limit."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes


class Upload(NamedTuple):
    """Two parts of a multipart body: the manifest, then the artifact, read as it is sent."""

    manifest: bytes
    artifact: IO[bytes]


@dataclass(frozen=True)
class Call(Generic[T]):
    """`control`: goes to /api/v1, else to V2. `repeat`: sending it twice does no harm. `timeout` in seconds."""

    method: str
    path: str
    read: Callable[[Answer], T]
    control: bool = False
    keyed: bool = True
    repeat: bool = False
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    upload: Upload | None = None
    timeout: float | None = None


# --- reading answers ----------------------------------------------------------------------------------------------


def check(answer: Answer, url: str) -> Answer:
    """The answer of a call that succeeded. Raises the error of its status otherwise."""
    if 200 <= answer.status < 300:
        return answer
    if 300 <= answer.status < 400:
        raise UnexpectedAnswer(
            f"{url} redirects elsewhere; a key is never sent on: set the address to the server itself",
            status=answer.status,
        )
    raise _refusal(answer, url)


def _refusal(answer: Answer, url: str) -> ServerError:
    body = _loads(answer.content)
    body = body if isinstance(body, dict) else {}
    message = body.get("error")
    if not isinstance(message, str):
        message = f"{url} answered with status {answer.status}"
    return BY_STATUS.get(answer.status, ServerError)(
        message,
        status=answer.status,
        error_id=body.get("error_id") or answer.headers.get("x-error-id"),
        retry_after=retry_after(answer),
    )


def retry_after(answer: Answer) -> float | None:
    """Seconds of the Retry-After header, None where there is none (a date is none: servers of ours send seconds)."""
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _loads(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _record(answer: Answer) -> Record:
    body = _loads(answer.content)
    if not isinstance(body, dict):
        raise UnexpectedAnswer("the answer is no JSON object: is this the address of a Penstock server?")
    return body


def _member(name: str) -> Callable[[Answer], list[Record]]:
    def read(answer: Answer) -> list[Record]:
        found = _record(answer).get(name)
        if not isinstance(found, list):
            raise UnexpectedAnswer(f"the answer has no list {name!r}: is this the address of a Penstock server?")
        return found

    return read


def _metadata(answer: Answer) -> Record:
    _member("inputs")(answer)
    return _record(answer)


def _nothing(answer: Answer) -> None:
    return None


def _response(answer: Answer) -> wire.Response:
    return wire.decode(answer.content, answer.headers.get(wire.HEADER_LENGTH.lower()))


# --- V2 -----------------------------------------------------------------------------------------------------------


def _model(name: str, version: str | int | None = None) -> str:
    """The path of a model or a version. Raises InvalidInput for a name that none can have."""
    path = f"models/{check_model(name)}"
    return path if version is None else f"{path}/versions/{check_version(version)}"


def _alias(name: str, alias: str) -> str:
    return f"{_model(name)}/aliases/{check_alias(alias)}"


def ready() -> Call[None]:
    return Call("GET", "v2/health/ready", _nothing, keyed=False, timeout=5.0)


def server() -> Call[Record]:
    """Name, version and extensions of the server."""
    return Call("GET", "v2", _record, repeat=True)


def metadata(model: str, version: str | int | None) -> Call[Record]:
    return Call("GET", f"v2/{_model(model, version)}", _metadata, repeat=True)


def config(model: str, version: str | int | None) -> Call[Record]:
    """Triton's ModelConfig as JSON, `max_batch_size` in it."""
    return Call("GET", f"v2/{_model(model, version)}/config", _record, repeat=True)


def infer(
    model: str,
    inputs: Mapping[str, wire.Array],
    *,
    version: str | int | None = None,
    timeout: float | None = None,
    parameters: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
) -> Call[wire.Response]:
    """`timeout` in seconds is the deadline on the server too, unless `parameters` name one (in µs)."""
    budget = {} if timeout is None else {"timeout": max(1, round(timeout * 1e6))}
    content, headers = wire.encode(inputs, outputs, {**budget, **(parameters or {})})
    path = f"v2/{_model(model, version)}/infer"
    return Call("POST", path, _response, repeat=True, headers=headers, content=content, timeout=timeout)


# --- /api/v1 ------------------------------------------------------------------------------------------------------


def _control(
    method: str, path: str, read: Callable[[Answer], T], body: object = None, timeout: float | None = None
) -> Call[T]:
    content = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    return Call(
        method,
        f"api/v1/{path}",
        read,
        control=True,
        repeat=method == "GET",
        headers=headers,
        content=content,
        timeout=timeout,
    )


def whoami() -> Call[Record]:
    return _control("GET", "whoami", _record)


def models() -> Call[list[Record]]:
    return _control("GET", "models", _member("models"))


def model(name: str) -> Call[Record]:
    return _control("GET", _model(name), _record)


def version(name: str, number: int | str) -> Call[Record]:
    return _control("GET", _model(name, number), _record)


def architectures() -> Call[list[Record]]:
    return _control("GET", "architectures", _member("architectures"))


def push(name: str, manifest: Mapping[str, Any], artifact: IO[bytes], wait: float | None) -> Call[Record]:
    """`wait`: seconds that the server gives the version to become ready, None = its own limit."""
    return Call(
        "POST",
        f"api/v1/{_model(name)}/versions",
        _record,
        control=True,
        params={} if wait is None else {"wait": f"{wait:g}"},
        upload=Upload(json.dumps(manifest).encode(), artifact),
        timeout=LONG if wait is None else wait + 60.0,
    )


def alias(name: str, alias: str, version: int | str) -> Call[Record]:
    return _control("PUT", _alias(name, alias), _record, _chosen(version))


def unalias(name: str, alias: str) -> Call[None]:
    return _control("DELETE", _alias(name, alias), _nothing)


def load(name: str, version: int | str | None) -> Call[Record]:
    return _control("POST", f"{_model(name)}/load", _record, _chosen(version), LONG)


def unload(name: str, version: int | str | None) -> Call[Record]:
    return _control("POST", f"{_model(name)}/unload", _record, _chosen(version), LONG)


def _chosen(version: int | str | None) -> Record:
    return {} if version is None else {"version": check_version(version)}


def delete(name: str, version: int | str | None) -> Call[None]:
    return _control("DELETE", _model(name, version), _nothing)


def tag(name: str, version: int | str, tags: Mapping[str, str]) -> Call[Record]:
    return _control("PUT", f"{_model(name, version)}/tags", _record, dict(tags))


def deployment(name: str) -> Call[Record]:
    return _control("GET", f"{_model(name)}/deployment", _record)


def set_deployment(name: str, wish: Mapping[str, Any]) -> Call[Record]:
    return _control("PUT", f"{_model(name)}/deployment", _record, dict(wish))


def reset_deployment(name: str) -> Call[Record]:
    return _control("DELETE", f"{_model(name)}/deployment", _record)


def status() -> Call[Record]:
    return _control("GET", "status", _status)


def _status(answer: Answer) -> Record:
    _member("models")(answer)
    return _record(answer)


def keys() -> Call[list[Record]]:
    return _control("GET", "keys", _member("keys"))


def create_key(
    name: str,
    role: str,
    owner: str | None,
    models: Sequence[str],
    grants: Sequence[str],
    expires_in_s: float | None,
) -> Call[Record]:
    body: Record = {"name": name, "role": role, "models": list(models), "grants": list(grants)}
    if owner is not None:
        body["owner"] = owner
    if expires_in_s is not None:
        body["expires_in_s"] = expires_in_s
    return _control("POST", "keys", _record, body)


def revoke_key(key_id: str) -> Call[None]:
    return _control("DELETE", f"keys/{quote(key_id, safe='')}", _nothing)
