"""The HTTP session to a collector: what that answers is nobody's business but its status, so no more than a little of
it is read. The library would take in a body of any length, and wait as long as any Retry-After says."""

from __future__ import annotations

import os
from typing import Any

import requests

BODY_BYTES = 1 << 16
PROVIDERS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP"
"""How the variables begin that name a session of somebody else's: then it is that one's business."""


def session() -> requests.Session | None:
    """None where the environment names another."""
    return None if any(name.startswith(PROVIDERS) for name in os.environ) else _Bounded()


class _Bounded(requests.Session):
    def send(self, request: requests.PreparedRequest, **how: Any) -> requests.Response:
        response = super().send(request, **(how | {"stream": True}))
        try:
            response._content = response.raw.read(BODY_BYTES, decode_content=False)
        finally:
            response.close()
        if not response.headers.get("Retry-After", "").strip("0").isdecimal():
            response.headers.pop("Retry-After", None)
        return response
