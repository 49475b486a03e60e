"""Models: pushed, listed, aliased, tagged, loaded, deleted."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from control.push import OVERHEAD, Sender, Upload, boundary_of, check_length
from control.views import (
    AliasView,
    Chosen,
    Deleted,
    Error,
    Models,
    ModelView,
    Standing,
    Target,
    VersionView,
    model_view,
    version_view,
)
from core.errors import InvalidRequest, NotFound, PenstockError, SlowSender
from core.identity import DEPLOY, PREDICT, Principal
from core.names import NAME
from core.settings import Settings
from core.web import allow_body, error_response, require
from repository.commands import Commands
from repository.manifest import Manifest, parse
from repository.records import Version, VersionState
from repository.watch import Watch

log = structlog.get_logger(__name__)

Reader = Annotated[Principal, Depends(require(PREDICT))]
Deployer = Annotated[Principal, Depends(require(DEPLOY))]
Wait = Annotated[
    float | None,
    Query(ge=0, le=86_400, description="seconds to wait for the version to be ready; 0: answer 202 once it is stored"),
]
PUSH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["manifest", "artifact"],
                    "properties": {
                        "manifest": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "description": "JSON: format, entry, signature, example, max_batch, default_deadline_ms, "
                            "queue_bound, warmup, alias, tags, allow_code; must come first",
                            "example": '{"format": "onnx", "max_batch": 32, "alias": "champion"}',
                        },
                        "artifact": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}


def router(commands: Commands, watch: Watch, settings: Settings) -> APIRouter:
    api = APIRouter()
    api.include_router(_reading(watch))
    api.include_router(_pushing(commands, watch, settings))
    api.include_router(_changing(commands, watch))
    return api


def _reading(watch: Watch) -> APIRouter:
    api = APIRouter(prefix="/models")

    @api.get("", summary="The models that the key may see")
    async def list_models(who: Reader) -> Models:
        catalog = await watch.refresh()
        return Models(models=[model_view(catalog, model, who) for model in sorted(catalog.versions) if who.sees(model)])

    @api.get("/{model}", summary="One model: its aliases, and its versions, newest first")
    async def read_model(who: Reader, model: str) -> ModelView:
        catalog = await watch.refresh()
        if model not in catalog.versions:
            raise NotFound(f"unknown model {model[:128]!r}")
        return model_view(catalog, model, who)

    @api.get("/{model}/versions/{version}", summary="One version, by number or alias")
    async def read_version(who: Reader, model: str, version: str) -> VersionView:
        catalog = await watch.refresh()
        number = catalog.resolve(model, version) if NAME.match(version) else None
        found = None if number is None else catalog.version(model, number)
        if found is None:
            raise NotFound(f"model {model[:128]!r} has no version {version[:128]!r}")
        return version_view(found, catalog.states.get((model, found.version)), who)

    return api


def _pushing(commands: Commands, watch: Watch, settings: Settings) -> APIRouter:
    api = APIRouter(prefix="/models")

    @api.post(
        "/{model}/versions",
        status_code=201,
        summary="Push a version; answers when it is ready, or says why it is not",
        response_model=VersionView,
        responses={
            202: {"model": VersionView, "description": "stored, and loading (wait=0)"},
            408: {"model": Error, "description": "the upload is slower than the minimum rate"},
            413: {"model": Error, "description": "the artifact or the manifest is too large"},
            415: {"model": Error, "description": "not multipart/form-data"},
        },
        openapi_extra=PUSH_BODY,
    )
    async def push(who: Deployer, model: str, request: Request, wait: Wait = None) -> Response:
        sender = Sender(request.receive, settings.push_min_rate, settings.push_window_s)
        try:
            version, manifest = await _received(commands, settings, who, model, request, sender, wait)
        except (PenstockError, ClientDisconnect) as error:
            return await _cut_off(error, sender)
        if wait == 0:
            return _shown(version, None, who, 202)
        try:
            state = await commands.settle(version, manifest.alias, wait)
        except PenstockError as error:
            return error_response(error, version=version.version)
        return _shown(watch.catalog.version(model, version.version) or version, state, who, 201)

    return api


async def _received(
    commands: Commands,
    settings: Settings,
    who: Principal,
    model: str,
    request: Request,
    sender: Sender,
    wait: float | None,
) -> tuple[Version, Manifest]:
    """Read and store what is pushed, refusing as early as possible."""
    allow_body(request, settings.max_push_bytes + settings.max_manifest_bytes + OVERHEAD)
    headers = request.headers
    boundary = boundary_of(headers.get("content-type", ""), headers.get("content-encoding", ""))
    check_length(headers, settings.max_push_bytes, settings.max_manifest_bytes)
    upload = Upload(sender.chunks(), boundary, settings.max_manifest_bytes)
    manifest = parse(await upload.manifest(), settings)
    if wait == 0 and manifest.alias is not None:
        raise InvalidRequest("alias: it is set once the version is ready, so it needs a wait")
    commands.check_push(model, manifest, who)
    return await commands.push(model, manifest, upload.artifact(), who), manifest


async def _cut_off(error: PenstockError | ClientDisconnect, sender: Sender) -> Response:
    """Refuse an upload. Where it was not read to its end, its connection cannot be used again."""
    if isinstance(error, ClientDisconnect):
        log.info("push_abandoned")
        return Response(status_code=400)
    if not isinstance(error, SlowSender):
        await sender.drain()
    answer = error_response(error)
    if sender.more:
        answer.headers["Connection"] = "close"
    return answer


def _shown(version: Version, state: VersionState | None, who: Principal, status: int) -> Response:
    return Response(version_view(version, state, who).model_dump_json(), status, media_type="application/json")


def _changing(commands: Commands, watch: Watch) -> APIRouter:
    api = APIRouter(prefix="/models")

    @api.delete("/{model}", summary="Delete a model with all its versions and aliases")
    async def delete_model(who: Deployer, model: str) -> Deleted:
        await commands.delete_model(model)
        return Deleted(deleted=model)

    @api.delete(
        "/{model}/versions/{version}",
        summary="Delete a version; a loaded one is unloaded first",
        responses={409: {"model": Error, "description": "an alias points at it"}},
    )
    async def delete_version(who: Deployer, model: str, version: str) -> Deleted:
        await commands.delete_version(model, version)
        return Deleted(deleted=f"{model}/{version}")

    @api.put("/{model}/versions/{version}/tags", summary="Replace the tags of a version")
    async def set_tags(who: Deployer, model: str, version: str, tags: dict[str, str]) -> VersionView:
        changed = await commands.set_tags(model, version, tags)
        return version_view(changed, watch.catalog.states.get((model, changed.version)), who)

    @api.put("/{model}/aliases/{alias}", summary="Point an alias at a version")
    async def set_alias(who: Deployer, model: str, alias: str, target: Target) -> AliasView:
        written = await commands.set_alias(model, alias, target.version)
        return AliasView(model=written.model, alias=written.alias, version=written.version)

    @api.delete("/{model}/aliases/{alias}", summary="Remove an alias")
    async def delete_alias(who: Deployer, model: str, alias: str) -> Deleted:
        await commands.delete_alias(model, alias)
        return Deleted(deleted=f"{model}/{alias}")

    @api.post("/{model}/load", summary="Load a version, or what the model's rule wants; answers when it is done")
    async def load(who: Deployer, model: str, chosen: Chosen | None = None) -> Standing:
        return _standing(await commands.load(model, None if chosen is None else chosen.version))

    @api.post("/{model}/unload", summary="Unload a version, or the whole model; answers when it is done")
    async def unload(who: Deployer, model: str, chosen: Chosen | None = None) -> Standing:
        return _standing(await commands.unload(model, None if chosen is None else chosen.version))

    return api


def _standing(state: VersionState) -> Standing:
    return Standing(name=state.model, version=state.version, state=state.state)
