"""Is the control plane up, and can it do anything? Asked for by whoever runs it, without a credential."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

PUBLIC = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Answered without a credential; the paths are a gateway's, so that one probe fits all."""


class Live(BaseModel):
    live: bool = True


class Ready(Live):
    ready: bool = Field(description="whether the repository answers")


def router(ready: Callable[[], bool]) -> APIRouter:
    api = APIRouter(prefix="/v2/health")

    @api.get("/live", summary="Is the process up? (no credential)")
    async def read_live() -> Live:
        return Live()

    @api.get(
        "/ready",
        summary="Does the repository answer? (no credential)",
        response_model=Ready,
        responses={503: {"model": Ready, "description": "not now"}},
    )
    async def read_ready() -> Response:
        now = ready()
        body = orjson.dumps({"live": True, "ready": now})
        return Response(body, 200 if now else 503, media_type="application/json")

    return api
