"""The application with its own documentation: Swagger UI at `/docs` over `/openapi.json`, all of it from this server.

Swagger UI's files are those of the package fastapi-offline. No script and no style stands in the page itself, so its
policy can forbid the browser everything but what this server sends.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from importlib.resources import files
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.metadata import server_metadata

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Penstock API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<noscript>This page needs JavaScript; the document that it shows is <a href="openapi.json">openapi.json</a>.</noscript>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Cache-Control": "private, no-cache",  # kept by the browser, and asked for again by its ETag
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PATHS = frozenset({"/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json"})
"""Everything that the page is made of."""
SCHEMES = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key: psk_…"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same key as a bearer token"},
}
TAGS = ("inference", "models", "deployments", "repository", "server", "control", "keys")
"""The sections of the page, in this order."""
INVENTED = ("HTTPValidationError", "ValidationError")
"""What FastAPI describes, and `core.web.install_errors` answers with a 400 in our own form instead."""


class Application(FastAPI):
    """FastAPI with the page above. `public`: the paths that are read without a credential."""

    def __init__(self, summary: str, public: Collection[str]) -> None:
        self._public = public
        version = server_metadata()["version"]
        off: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
        tags: list[dict[str, Any]] = [{"name": name} for name in TAGS]
        super().__init__(title="Penstock", version=version, summary=summary, openapi_tags=tags, routes=routes(), **off)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made when it is first asked for."""
        return completed(super().openapi(), self._public)


def completed(document: dict[str, Any], public: Collection[str]) -> dict[str, Any]:
    """The document, changed in place: how to come in, where nobody need, and no errors that do not exist."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    for name in INVENTED:
        components.get("schemas", {}).pop(name, None)
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            operation["responses"].pop("422", None)
            if verb == "get" and path in public:
                operation["security"] = []
    return document


# --- the page's files ---------------------------------------------------------------------------------------------


class File(NamedTuple):
    path: str
    content: bytes
    media_type: str


def routes() -> list[BaseRoute]:
    """One for each file of the page."""
    return [_route(file) for file in _files()]


def _files() -> list[File]:
    swagger_ui = files("fastapi_offline") / "static"
    return [
        File("/docs", PAGE.encode(), "text/html"),
        File("/docs/start.js", START.encode(), "text/javascript"),
        File("/docs/swagger-ui-bundle.js", (swagger_ui / "swagger-ui-bundle.js").read_bytes(), "text/javascript"),
        File("/docs/swagger-ui.css", (swagger_ui / "swagger-ui.css").read_bytes(), "text/css"),
    ]


def _route(file: File) -> Route:
    tag = f'"{sha256(file.content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}

    async def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)

    return Route(file.path, send, name=file.path)
