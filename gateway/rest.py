"""The V2 REST routes that are not hot: FastAPI's ordinary ones. They decide nothing; `gateway/metadata.py` answers.

Infer stands here for its documentation, and for a server other than ours: `gateway/http.py` takes infer requests
before they become ASGI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter, Depends, Path, Request, Response

from core.datatypes import Buffer
from core.errors import InvalidRequest
from core.identity import DEPLOY, PREDICT, Principal
from core.settings import Settings
from core.web import allow_body, require
from gateway import examples, metadata
from gateway.codec import parameters, rest
from gateway.dataplane import DataPlane
from gateway.health import Health
from gateway.http_exchange import HttpExchange, InferHead, infer_target
from gateway.lifecycle import Lifecycle
from gateway.routes import Routes
from repository.watch import Watch

PUBLIC = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Answered without a credential."""


def may_compress(path: str) -> bool:
    """Whether a body sent to `path` may have a Content-Encoding: that of an infer request."""
    return infer_target(path.encode()) is not None


Caller = Annotated[Principal, Depends(require(PREDICT))]
Deployer = Annotated[Principal, Depends(require(DEPLOY))]

Model = Annotated[str, Path(description="A model's name", openapi_examples=examples.MODELS)]
Number = Annotated[str, Path(description="A version's number, or an alias", openapi_examples=examples.VERSIONS)]


class Answer(Response):
    """JSON, rendered by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


def router(
    plane: DataPlane, routes: Routes, watch: Watch, commands: Lifecycle, health: Health, settings: Settings
) -> APIRouter:
    """The routes under `/v2`."""
    api = APIRouter(prefix="/v2", default_response_class=Answer)
    _server(api, routes, health)
    _models(api, routes)
    _infer(api, plane, settings)
    _repository(api, watch, commands, settings)
    return api


def _server(api: APIRouter, routes: Routes, health: Health) -> None:
    @api.get(
        "",
        tags=["server"],
        summary="Name, version and protocol extensions of the server",
        responses=examples.SERVER,
    )
    async def server_metadata(caller: Caller) -> Response:
        return Answer(metadata.server_metadata())

    @api.get("/health/live", tags=["server"], summary="Is the process up? (no credential)", responses=examples.LIVE)
    async def live() -> Response:
        return Answer({"live": True})

    @api.get(
        "/health/ready",
        tags=["server"],
        summary="Is the server ready for requests? (no credential)",
        responses=examples.READY,
    )
    async def ready() -> Response:
        return Answer({"ready": health.ready, "live": health.ready}, 200 if health.ready else 503)

    @api.get(
        "/models",
        tags=["models"],
        summary="Names of the models that are open and that the key may see",
        responses=examples.NAMES,
    )
    async def list_models(caller: Caller) -> Response:
        return Answer({"models": sorted({route.name for route in routes.table.open(caller)})})

    @api.get(
        "/models/stats",
        tags=["models"],
        summary="Statistics of every model",
        responses=examples.STATISTICS,
    )
    async def all_statistics(caller: Caller) -> Response:
        return Answer(metadata.statistics(routes.table, "", "", caller))


def _models(api: APIRouter, routes: Routes) -> None:
    async def model_metadata(caller: Caller, model: Model, version: Number) -> Response:
        table = routes.table
        return Answer(metadata.model_metadata(table.resolve(model, version, caller), table, caller))

    async def model_ready(caller: Caller, model: Model, version: Number) -> Response:
        return Answer({"name": routes.table.resolve(model, version, caller).name, "ready": True})

    async def model_config(caller: Caller, model: Model, version: Number) -> Response:
        return Answer(metadata.model_config(routes.table.resolve(model, version, caller).version))

    async def model_statistics(caller: Caller, model: Model, version: Number) -> Response:
        return Answer(metadata.statistics(routes.table, model, version, caller))

    for suffix, endpoint, summary, answered in (
        ("", model_metadata, "Inputs and outputs of a model", examples.METADATA),
        ("/ready", model_ready, "Is the model ready? 503 while it is not", examples.MODEL_READY),
        ("/config", model_config, "Configuration: batching, deadlines, bounds, in Triton's form", examples.CONFIG),
        ("/stats", model_statistics, "Statistics: requests, batches, durations", examples.STATISTICS),
    ):
        about: dict[str, Any] = {"summary": summary, "responses": answered, "name": endpoint.__name__}
        api.add_api_route("/models/{model}" + suffix, _unversioned(endpoint), tags=["models"], **about)
        api.add_api_route("/models/{model}/versions/{version}" + suffix, endpoint, tags=["models"], **about)


def _unversioned(endpoint: Callable[[Principal, str, str], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """The endpoint for a path without a version: that which the model serves."""

    async def of_model(caller: Caller, model: Model) -> Response:
        return await endpoint(caller, model, "")

    return of_model


def _repository(api: APIRouter, watch: Watch, commands: Lifecycle, settings: Settings) -> None:
    @api.post(
        "/repository/index",
        tags=["repository"],
        summary="Every version the key may see, and its state",
        responses=examples.REPOSITORY,
        openapi_extra=examples.INDEX,
    )
    async def index(caller: Caller, request: Request) -> Response:
        wanted = await _json_object(request)
        ready = wanted.get("ready", False)
        if type(ready) is not bool:
            raise InvalidRequest("'ready' must be true or false")
        return Answer(metadata.repository_index(await watch.refresh(), caller, ready))

    @api.post(
        "/repository/models/{model}/load",
        tags=["repository"],
        summary="Load a model; answers when it is done",
        responses=examples.DONE,
        openapi_extra=examples.EMPTY,
    )
    async def load(caller: Deployer, model: Model, request: Request) -> Response:
        caller.require(DEPLOY, model)
        allow_body(request, settings.max_body_bytes)  # a `file:` parameter is refused for what it is, not for its size
        parameters.check_load(_parameters(await _json_object(request)))
        await commands.load(model)
        return Answer({})

    @api.post(
        "/repository/models/{model}/unload",
        tags=["repository"],
        summary="Unload a model, once it is drained",
        responses=examples.DONE,
        openapi_extra=examples.EMPTY,
    )
    async def unload(caller: Deployer, model: Model, request: Request) -> Response:
        caller.require(DEPLOY, model)
        await _json_object(request)
        await commands.unload(model)
        return Answer({})


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    found = content.get("parameters")
    if not isinstance(found, dict | None):
        raise InvalidRequest("'parameters' must be an object")
    return found or {}


async def _json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object."""
    body = await request.body()
    if not body.strip():
        return {}
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"malformed JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidRequest("the body must be a JSON object")
    return content


def _infer(api: APIRouter, plane: DataPlane, settings: Settings) -> None:
    limits = rest.Limits(settings.max_decoded_bytes, settings.max_tensors)

    async def answer(request: Request, model: str, version: str) -> Response:
        reply = _Reply(limits)
        exchange = HttpExchange(reply, InferHead((model, version), dict(reversed(request.scope["headers"]))))
        allow_body(request, settings.max_body_bytes)
        exchange.body = await request.body()
        plane.infer(exchange)
        try:
            return await reply.response
        finally:
            plane.cancel(exchange)

    about: dict[str, Any] = {
        "tags": ["inference"],
        "summary": "Predict",
        "responses": examples.ANSWERS,
        "openapi_extra": examples.INFER,
    }

    @api.post("/models/{model}/infer", **about)
    async def infer(request: Request, model: Model) -> Response:
        return await answer(request, model, "")

    @api.post("/models/{model}/versions/{version}/infer", **about)
    async def infer_version(request: Request, model: Model, version: Number) -> Response:
        return await answer(request, model, version)


class _Reply:
    """The connection of an exchange that came as ASGI."""

    def __init__(self, limits: rest.Limits) -> None:
        self.limits = limits
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def answer(self, exchange: HttpExchange, status: int, headers: bytes, parts: list[Buffer]) -> None:
        response = Response(b"".join(parts), status)
        for line in headers.decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(": ")
            response.headers[name] = value
        if not self.response.done():
            self.response.set_result(response)
