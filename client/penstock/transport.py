"""What both clients share around a call: the HTTP request it becomes, the answer, and whether to try again.

Retries follow a budget: one retry for a call, only after 503 with Retry-After and only of calls that may be repeated,
only where its wait is short and fits the time left, and at most one in ten calls (a crowd of retries keeps a server
down).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx

from penstock.calls import Answer, Call, retry_after
from penstock.config import Config, Target
from penstock.errors import InvalidInput, NoAnswer, NotConfigured, PenstockError, UnexpectedAnswer

T = TypeVar("T")
DEFAULT_TIMEOUT = 60.0
"""Seconds for an answer where the call names no limit: twice a server's default deadline."""
CONNECT_TIMEOUT = 5.0
LONGEST_PAUSE = 5.0
"""Seconds of Retry-After that are waited for; a longer one is for the caller to decide about."""


class RetryBudget:
    """Each call earns a tenth of a retry; at most ten are saved up, and one is there from the start."""

    def __init__(self, allowance: float = 1.0) -> None:
        self.allowance = allowance

    def earn(self) -> None:
        self.allowance = min(10.0, self.allowance + 0.1)

    def wait(self, call: Call[Any], answer: Answer, left: float) -> float | None:
        """Seconds to wait before sending `call` again, None for never. `left`: seconds of its time that remain."""
        pause = retry_after(answer)
        if not call.repeat or answer.status != 503 or pause is None:
            return None
        if pause >= min(left, LONGEST_PAUSE) or self.allowance < 1.0:
            return None
        self.allowance -= 1.0
        return pause


def target_of(config: Config, call: Call[Any]) -> Target:
    """Where a call goes. Raises NotConfigured where it needs a key and none may go there."""
    target = config.control if call.control else config.data
    if call.keyed and target.key is None:
        raise NotConfigured(target.missing)
    return target


def request_of(http: httpx.Client | httpx.AsyncClient, config: Config, call: Call[Any], left: float) -> httpx.Request:
    target = target_of(config, call)
    headers = dict(call.headers)
    if call.keyed and target.key is not None:
        headers["Authorization"] = f"Bearer {target.key}"
    return http.build_request(
        call.method,
        f"{target.url}/{call.path}",
        params=dict(call.params) or None,
        headers=headers,
        content=call.content,
        files=_parts(call),
        timeout=httpx.Timeout(left, connect=min(CONNECT_TIMEOUT, left)),
    )


def _parts(call: Call[Any]) -> Any:
    if call.upload is None:
        return None
    manifest, artifact = call.upload
    return [
        ("manifest", (None, manifest, "application/json")),
        ("artifact", ("artifact", artifact, "application/octet-stream")),
    ]


def time_of(call: Call[Any], default: float) -> float:
    return default if call.timeout is None else call.timeout


def checked_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout > 0:
        raise InvalidInput(f"a timeout must be more than 0 seconds, not {timeout:g}")


def answer_of(response: httpx.Response) -> Answer:
    headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, response.content)


def failure_of(error: Exception, url: str) -> PenstockError:
    """An error of the HTTP library (or of asyncio's clock) as one of ours."""
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return NoAnswer(f"{url} cannot be reached: is a server running there?")
    if isinstance(error, httpx.TimeoutException | asyncio.TimeoutError):
        return NoAnswer(f"{url} did not answer in time")
    if isinstance(error, httpx.TransportError):
        return NoAnswer(f"{url} broke off before its answer was complete")
    return UnexpectedAnswer(f"{url} sent an answer that cannot be read")


def is_encrypted(config: Config) -> bool:
    return all(target.url.startswith("https://") for target in (config.data, config.control))


def options_of(config: Config) -> dict[str, Any]:
    """How both clients open connections.

    No redirects, so that no key is sent on. Proxies of the environment for https alone: over plain http a proxy would
    read the key. No compression to spend time on. No certificates read (~30 ms) where there is no https.
    """
    secure = any(target.url.startswith("https://") for target in (config.data, config.control))
    return {
        "follow_redirects": False,
        "trust_env": is_encrypted(config),
        "verify": True if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        "headers": {"User-Agent": "penstock", "Accept-Encoding": "identity"},
    }
