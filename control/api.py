"""`/api/v1`: the API that changes things. Ordinary FastAPI routes; every decision is in `repository/commands.py`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from control import deployments, keys, models, status
from control.views import Architecture, Architectures, Error, Whoami, whoami
from core.identity import Principal
from core.settings import Settings
from core.web import principal
from repository.architectures import ARCHITECTURES
from repository.commands import Commands
from repository.watch import Watch

PREFIX = "/api/v1"
_UPLOAD = re.compile(re.escape(PREFIX) + r"/models/[^/]+/versions\Z")
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "something sent is wrong; the message names it"},
    401: {"model": Error, "description": "no credential, or one that is unknown, expired or revoked"},
    403: {"model": Error, "description": "the key's role or grants do not permit this"},
    404: {"model": Error, "description": "no such thing, or none that the key may see"},
    503: {"model": Error, "description": "not now; Retry-After says when"},
}


def is_upload(method: str, path: str) -> bool:
    """Whether a request is a push: its body has a size limit and a minimum rate of its own."""
    return method == "POST" and _UPLOAD.match(path) is not None


def router(commands: Commands, watch: Watch, settings: Settings, look: status.Look = status.nobody) -> APIRouter:
    """All routes under `/api/v1`. They expect a `core.web.Guard` before them and `install_errors` around them.

    `look`: which replicas and gateways are alive now.
    """
    api = APIRouter(prefix=PREFIX, responses=ERRORS)
    api.include_router(_about(), tags=["control"])
    api.include_router(status.router(watch, look), tags=["control"])
    api.include_router(models.router(commands, watch, settings), tags=["models"])
    api.include_router(deployments.router(commands, watch), tags=["deployments"])
    api.include_router(keys.router(commands), tags=["keys"])
    return api


def _about() -> APIRouter:
    api = APIRouter()

    @api.get("/whoami", summary="Who the key is")
    async def read_whoami(who: Annotated[Principal, Depends(principal)]) -> Whoami:
        return whoami(who)

    @api.get("/architectures", summary="Torch architectures that a push may name")
    async def list_architectures(who: Annotated[Principal, Depends(principal)]) -> Architectures:
        named = [Architecture(name=name, description=text) for name, text in ARCHITECTURES.items()]
        return Architectures(architectures=named)

    return api
