"""Who may do what: every route of REST, gRPC and control API, as the live tables have them, with every credential.

The tables below say what is expected; a route that is served and does not stand in them fails the test, and so does
one that stands there and is not served. In the production shape gateways and control plane share the table; what they
serve is read off their own documents, so routes that no document has are looked for in the embedded server alone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import grpc
import httpx
import penstock
import pytest
from fastapi.routing import iter_route_contexts
from google.protobuf import json_format
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from penstock.aio import AsyncClient
from tritonclient.grpc import service_pb2

from core.identity import ADMIN, DEPLOY, PERMITS, PREDICT
from gateway.http_exchange import infer_target
from server import docs
from server.embedded import Embedded
from tests.e2e.inside import inside
from tests.gateway.wire import Wire
from tests.graphs import identity
from tests.production import Lent, asked_patiently
from tests.running import DISTRIBUTED, EMBEDDED

PUBLIC = ""
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}


class Row(NamedTuple):
    """`role` it needs, the answer to who has it, and what is sent. A `{model}` is `echo`, or `ghost` where the call
    would change something."""

    role: str
    status: int = 200
    body: Any = None
    ghost: bool = False


REST: dict[tuple[str, str], Row] = {
    ("GET", "/v2/health/live"): Row(PUBLIC),
    ("GET", "/v2/health/ready"): Row(PUBLIC),
    ("GET", "/docs"): Row(PUBLIC),
    ("GET", "/docs/start.js"): Row(PUBLIC),
    ("GET", "/docs/swagger-ui-bundle.js"): Row(PUBLIC),
    ("GET", "/docs/swagger-ui.css"): Row(PUBLIC),
    ("GET", "/openapi.json"): Row(PUBLIC),
    ("HEAD", "/docs"): Row(PREDICT),
    ("HEAD", "/docs/start.js"): Row(PREDICT),
    ("HEAD", "/docs/swagger-ui-bundle.js"): Row(PREDICT),
    ("HEAD", "/docs/swagger-ui.css"): Row(PREDICT),
    ("HEAD", "/openapi.json"): Row(PREDICT),
    ("GET", "/v2"): Row(PREDICT),
    ("GET", "/v2/models"): Row(PREDICT),
    ("GET", "/v2/models/stats"): Row(PREDICT),
    ("GET", "/v2/models/{model}"): Row(PREDICT),
    ("GET", "/v2/models/{model}/ready"): Row(PREDICT),
    ("GET", "/v2/models/{model}/config"): Row(PREDICT),
    ("GET", "/v2/models/{model}/stats"): Row(PREDICT),
    ("POST", "/v2/models/{model}/infer"): Row(PREDICT, 200, INFER),
    ("GET", "/v2/models/{model}/versions/{version}"): Row(PREDICT),
    ("GET", "/v2/models/{model}/versions/{version}/ready"): Row(PREDICT),
    ("GET", "/v2/models/{model}/versions/{version}/config"): Row(PREDICT),
    ("GET", "/v2/models/{model}/versions/{version}/stats"): Row(PREDICT),
    ("POST", "/v2/models/{model}/versions/{version}/infer"): Row(PREDICT, 200, INFER),
    ("POST", "/v2/repository/index"): Row(PREDICT),
    ("POST", "/v2/repository/models/{model}/load"): Row(DEPLOY),
    ("POST", "/v2/repository/models/{model}/unload"): Row(DEPLOY, 404, ghost=True),
    ("GET", "/api/v1/whoami"): Row(PREDICT),
    ("GET", "/api/v1/architectures"): Row(PREDICT),
    ("GET", "/api/v1/status"): Row(PREDICT),
    ("GET", "/api/v1/models"): Row(PREDICT),
    ("GET", "/api/v1/models/{model}"): Row(PREDICT),
    ("DELETE", "/api/v1/models/{model}"): Row(DEPLOY, 404, ghost=True),
    ("POST", "/api/v1/models/{model}/versions"): Row(DEPLOY, 415, {}),
    ("GET", "/api/v1/models/{model}/versions/{version}"): Row(PREDICT),
    ("DELETE", "/api/v1/models/{model}/versions/{version}"): Row(DEPLOY, 404, ghost=True),
    ("PUT", "/api/v1/models/{model}/versions/{version}/tags"): Row(DEPLOY, 200, {"a": "b"}),
    ("PUT", "/api/v1/models/{model}/aliases/{alias}"): Row(DEPLOY, 200, {"version": 1}),
    ("DELETE", "/api/v1/models/{model}/aliases/{alias}"): Row(DEPLOY, 404, ghost=True),
    ("GET", "/api/v1/models/{model}/deployment"): Row(PREDICT),
    ("PUT", "/api/v1/models/{model}/deployment"): Row(DEPLOY, 200, {"max_replicas": 2}),
    ("DELETE", "/api/v1/models/{model}/deployment"): Row(DEPLOY, 404, ghost=True),
    ("POST", "/api/v1/models/{model}/load"): Row(DEPLOY, 200, {}),
    ("POST", "/api/v1/models/{model}/unload"): Row(DEPLOY, 404, {}, ghost=True),
    ("GET", "/api/v1/keys"): Row(ADMIN),
    ("POST", "/api/v1/keys"): Row(ADMIN, 201, {"name": "made", "models": ["other-x"]}),
    ("DELETE", "/api/v1/keys/{key_id}"): Row(ADMIN, 404),
}
"""Every REST route, the control API's and the documentation's among them."""

INFERENCE = "/inference.GRPCInferenceService/"
GRPC: dict[str, Row] = {
    f"{INFERENCE}ServerLive": Row(PUBLIC),
    f"{INFERENCE}ServerReady": Row(PUBLIC),
    f"{INFERENCE}ServerMetadata": Row(PREDICT),
    f"{INFERENCE}ModelReady": Row(PREDICT, body={"name": "echo"}),
    f"{INFERENCE}ModelMetadata": Row(PREDICT, body={"name": "echo"}),
    f"{INFERENCE}ModelConfig": Row(PREDICT, body={"name": "echo"}),
    f"{INFERENCE}ModelStatistics": Row(PREDICT, body={"name": "echo"}),
    f"{INFERENCE}ModelInfer": Row(
        PREDICT,
        body={
            "model_name": "echo",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [1.0]}}],
        },
    ),
    f"{INFERENCE}RepositoryIndex": Row(PREDICT),
    f"{INFERENCE}RepositoryModelLoad": Row(DEPLOY, body={"model_name": "echo"}),
    f"{INFERENCE}RepositoryModelUnload": Row(DEPLOY, 404, {"model_name": "ghost"}, ghost=True),
    "/grpc.health.v1.Health/Check": Row(PUBLIC),
    "/grpc.health.v1.Health/Watch": Row(PUBLIC),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Row(PREDICT),
}
"""Every gRPC method."""
CODES = {200: "OK", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
UNKNOWN = (
    "/",
    "/v1",
    "/metrics",
    "/admin",
    "/v2/nothing",
    "/v2/models/echo/generate",
    "/api",
    "/api/v2/keys",
    "/redoc",
    "/docs/oauth2-redirect",
    "/docs/swagger-ui-bundle.js.map",
)


class Who(NamedTuple):
    """`role` None: nobody. `covers`: whether the key's patterns cover the models in the table."""

    key: str | None
    role: str | None
    covers: bool = True


class Site(NamedTuple):
    """A server with the model `echo`. `parts`: each of its addresses for HTTP, and the routes that are served there.
    `methods`: those of gRPC. `ps` has the first key."""

    parts: dict[str, set[tuple[str, str]]]
    grpc: str
    methods: set[str]
    ps: AsyncClient

    def at(self, path: str) -> str:
        """The address of a path."""
        return next(url for url, routes in self.parts.items() if path in {each for _, each in routes}) + path


@pytest.fixture(scope="module", params=[EMBEDDED, DISTRIBUTED])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def site(shape: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    if shape == EMBEDDED:
        async with (
            inside(tmp_path / "home") as server,
            penstock.connect_async(server.url, api_key=server.api_key) as ps,
        ):
            await furnish(ps, tmp_path)
            yield Site({server.url: served(server)}, server.grpc, set(server.rpc.paths), ps)
    else:
        lent: Lent = request.getfixturevalue("lent")
        url, grpc, control, key, *_ = lent.borrow().server
        async with penstock.connect_async(url, control=control, api_key=key) as ps:
            await furnish(ps, tmp_path)
            parts = {each: await documented(each) for each in (url, control)}
            yield Site(parts, grpc, await implemented(grpc, key), ps)


async def furnish(ps: AsyncClient, folder: Path) -> None:
    if "echo" not in {model["name"] for model in await ps.models()}:
        (folder / "echo.onnx").write_bytes(identity())
        await ps.push(folder / "echo.onnx", "echo")


async def credentials(site: Site) -> dict[str, Who]:
    """One of each kind."""
    keys = site.ps.keys

    async def key(role: str, *patterns: str) -> str:
        return str((await keys.create("k", role=role, models=patterns or ("*",)))["key"])

    revoked = await keys.create("revoked", role=ADMIN)
    await keys.revoke(revoked["id"])
    short = await keys.create("k", role=ADMIN, expires_in_s=0.001)
    while time.time() < short["expires"]:
        pass
    good = await key(ADMIN)
    found = {
        "no credential": Who(None, None),
        "no key at all": Who("Bearer", None),
        "an unknown key": Who("psk_0123456789ab_" + "A" * 43, None),
        "half a key": Who(good[:30], None),
        "a key with more behind it": Who(good + "A", None),
        "a revoked key": Who(revoked["key"], None),
        "an expired key": Who(short["key"], None),
        "a predict key": Who(await key(PREDICT), PREDICT),
        "a deploy key": Who(await key(DEPLOY), DEPLOY),
        "an admin key": Who(good, ADMIN),
        "a predict key of other models": Who(await key(PREDICT, "other-*"), PREDICT, covers=False),
        "an admin key of other models": Who(await key(ADMIN, "other-*"), ADMIN, covers=False),
    }
    await everywhere(site)
    return found


async def everywhere(site: Site) -> None:
    """Wait until every gateway knows the keys that there are."""
    async with asyncio.timeout(30):
        while True:
            told = await site.ps.status()
            if all(gateway["revision"] >= told["revision"] for gateway in told["gateways"]):
                return
            await asyncio.sleep(0.1)


def expected(row: Row, who: Who, about_a_model: bool) -> int:
    """The whole policy."""
    if row.role == PUBLIC:
        return row.status
    if who.role is None:
        return 401
    if about_a_model and not who.covers:
        return 404
    return row.status if row.role in PERMITS[who.role] else 403


# --- REST ---------------------------------------------------------------------------------------------------------


def served(server: Embedded) -> set[tuple[str, str]]:
    """(method, path) of every route that the server has."""
    routes = iter_route_contexts(server.http.config.app._app.routes)  # type: ignore[union-attr]
    return {(method, str(route.path)) for route in routes for method in route.methods or ()}


async def documented(url: str) -> set[tuple[str, str]]:
    """Those in the OpenAPI document of whoever serves there, and those of the page around it."""
    async with httpx.AsyncClient(base_url=url) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    page = {route for route in REST if route[1] in docs.PATHS}
    return page | {(verb.upper(), path) for path, operations in paths.items() for verb in operations}


def address(path: str, row: Row) -> str:
    values = {"model": "ghost" if row.ghost else "echo", "version": "1", "alias": "canary", "key_id": "nobody"}
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


async def test_every_rest_route_with_every_credential(site: Site) -> None:
    """The live route table is the one above, and each route answers each credential as the policy says."""
    assert set().union(*site.parts.values()) == set(REST)
    wrong = []
    offered = [(url, *route) for route in REST for url, routes in site.parts.items() if route in routes]
    async with httpx.AsyncClient(timeout=30) as http:
        for name, who in (await credentials(site)).items():
            for url, method, path in offered:
                row = REST[method, path]
                want = expected(row, who, "{model}" in path)
                for header in headers(who):
                    ask = partial(http.request, method, url + address(path, row), json=row.body, headers=header)
                    answer = await asked_patiently(ask)  # one call in thousands may find the database busy
                    if answer.status_code != want:
                        wrong.append(f"{method} {path} with {name}: {answer.status_code}, not {want}: {answer.text}")
                    if want >= 400 and method != "HEAD" and "error" not in answer.json():
                        wrong.append(f"{method} {path} with {name}: {answer.text}")
    assert not wrong, "\n".join(wrong)


async def test_a_part_serves_its_own_routes_alone(site: Site) -> None:
    """What another part of the same shape serves is unknown to it, whoever asks."""
    key = (await site.ps.keys.create("k", role=ADMIN))["key"]
    await everywhere(site)
    async with httpx.AsyncClient(headers={"X-API-Key": key}, timeout=30) as http:
        wrong = {
            f"{method} {url}{path}: {answer.status_code}"
            for url, routes in site.parts.items()
            for method, path in set(REST) - routes
            if (
                answer := await http.request(
                    method, url + address(path, REST[method, path]), json=REST[method, path].body
                )
            ).status_code
            != 404
        }
    assert not wrong


def headers(who: Who) -> Iterator[dict[str, str]]:
    """A credential's ways to travel."""
    if who.key is None:
        yield {}
    else:
        yield {"Authorization": f"Bearer {who.key}"}
        yield {"X-API-Key": who.key}


async def test_infer_paths_are_those_of_the_protocol(site: Site) -> None:
    """What the HTTP protocol takes before FastAPI sees it are the two infer routes, in any spelling of their names."""
    for path in ("/v2/models/echo/infer", "/v2/models/echo/versions/1/infer", "/v2/models/ec%68o/infer"):
        assert infer_target(path.encode()) is not None
        assert await statuses(site, f"POST {path} HTTP/1.1") == {401}
    for path in ("/v2/models//infer", "/v2/models/a/b/infer", "/v2/models/echo/infer/", "//v2/models/echo/infer"):
        assert infer_target(path.encode()) is None


def spellings(path: str) -> list[str]:
    """Other ways to write a path that some router somewhere takes for the same."""
    return [
        f"{path}/",
        f"/{path}",
        path.upper(),
        path.title(),
        f"{path}%00",
        f"{path}%20",
        f"{path};a=b",
        f"{path}/.",
        f"/x/..{path}",
        f"/.{path}",
        "/" + path[1:].replace("/", "%2f"),
        f"/%2e{path}",
        f"{path}%2f",
        f"{path}\\",
    ]


async def test_without_a_credential_only_the_allow_list_answers(site: Site) -> None:
    """Unknown paths, other spellings of known ones, other verbs: 401, all of them."""
    allowed = {path for (method, path), row in REST.items() if row.role == PUBLIC}
    lines = {f"{verb} {path} HTTP/1.1" for verb in VERBS for path in (*UNKNOWN, *allowed)}
    lines |= {f"{verb} {other} HTTP/1.1" for verb, path in REST for other in spellings(address(path, REST[verb, path]))}
    lines |= {f"{verb} {address(path, row)}?x=1 HTTP/1.1" for (verb, path), row in REST.items() if row.role != PUBLIC}
    lines -= {line for line in lines if line[:4] == "GET " and unquote(line.split()[1]) in allowed}
    wrong = {line: found for line in sorted(lines) if (found := await statuses(site, line)) != {401}}
    assert not wrong


async def test_no_tunnel(site: Site) -> None:
    """CONNECT is refused and its connection closed; the server goes on."""
    assert await statuses(site, "CONNECT example.org:443 HTTP/1.1") == {405}
    assert await statuses(site, "GET /v2/health/live HTTP/1.1") == {200}


async def test_an_absolute_target_or_a_forged_host_opens_nothing(site: Site) -> None:
    """Routes are chosen by the path alone."""
    for line in ("GET http://x/v2/health/live/../../models HTTP/1.1", "GET http://127.0.0.1/v2 HTTP/1.1"):
        assert await statuses(site, line) <= {400, 401}
    assert await statuses(site, "GET /v2/models HTTP/1.1\r\nX-Original-URL: /v2/health/live") == {401}
    assert await statuses(site, "GET /v2/models HTTP/1.1\r\nX-HTTP-Method-Override: POST") == {401}


async def statuses(site: Site, line: str) -> set[int]:
    """What a request line alone gets at each address."""
    return {await status(url, line) for url in site.parts}


async def status(url: str, line: str) -> int:
    wire = await Wire.to(urlsplit(url).port or 0)
    await wire.send(f"{line}\r\nHost: t\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    head = await wire.reader.readuntil(b"\r\n")
    await wire.close()
    return int(head.split()[1])


async def test_lists_show_what_the_key_covers(site: Site) -> None:
    """Models, index, statistics and keys of others are not even counted."""
    key = (await site.ps.keys.create("n", role=ADMIN, models=["apart-*"]))["key"]
    await everywhere(site)
    async with httpx.AsyncClient(headers={"X-API-Key": key}) as http:
        for method, path in (
            ("GET", "/v2/models"),
            ("GET", "/v2/models/stats"),
            ("POST", "/v2/repository/index"),
            ("GET", "/api/v1/models"),
            ("GET", "/api/v1/status"),
        ):
            answer = await http.request(method, site.at(path))
            assert answer.status_code == 200
            assert "echo" not in answer.text
        assert {each["name"] for each in (await http.get(site.at("/api/v1/keys"))).json()["keys"]} == {"n"}


# --- gRPC ---------------------------------------------------------------------------------------------------------


def declared(*services: Any) -> set[str]:
    """The methods in the definitions of these services."""
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


INFERENCE_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


async def implemented(address: str, key: str) -> set[str]:
    """Of all that could be there, the methods that are not answered by UNIMPLEMENTED."""
    others = (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    services = [INFERENCE_SERVICE, *(service for each in others for service in each.services_by_name.values())]
    metadata = [("x-api-key", key)]
    async with grpc.aio.insecure_channel(address) as channel:
        return {path for path in declared(*services) if await code(channel, path, b"", metadata) != "UNIMPLEMENTED"}


def message(path: str, row: Row) -> bytes:
    """The bytes of a method's request."""
    name = path.rpartition("/")[2]
    if path.startswith(INFERENCE):
        return bytes(
            json_format.ParseDict(row.body or {}, getattr(service_pb2, f"{name}Request")()).SerializeToString()
        )
    if "Health" in path:
        return bytes(health_pb2.HealthCheckRequest().SerializeToString())
    return bytes(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())


async def code(channel: grpc.aio.Channel, path: str, body: bytes, metadata: list[tuple[str, str]]) -> str:
    """How a call ends; of a watch, which does not end, that its first answer came."""
    call = channel.unary_stream(path, request_serializer=bytes, response_deserializer=bytes)(
        body, metadata=metadata, timeout=20
    )
    try:
        async for _ in call:
            if path.endswith("/Watch"):
                return "OK"
        return str((await call.code()).name)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    finally:
        call.cancel()


def carried(who: Who) -> Iterator[list[tuple[str, str]]]:
    for header in headers(who):
        yield [(name.lower(), value) for name, value in header.items()]


async def test_every_grpc_method_with_every_credential(site: Site) -> None:
    """The same policy, from the same table's point of view, for every method of every service."""
    assert site.methods == set(GRPC)
    wrong = []
    async with grpc.aio.insecure_channel(site.grpc) as channel:
        for name, who in (await credentials(site)).items():
            for path, row in GRPC.items():
                want = CODES[expected(row, who, "echo" in str(row.body) or row.ghost)]
                for metadata in carried(who):
                    found = await code(channel, path, message(path, row), metadata)
                    if found != want:
                        wrong.append(f"{path} with {name}: {found}, not {want}")
    assert not wrong, "\n".join(wrong)


async def test_unknown_grpc_methods_are_refused_first(site: Site) -> None:
    """Without a credential nobody learns what exists; methods of services known elsewhere among them."""
    others = ["/x.Y/Z", "/", "//", "/grpc.health.v1.Health/List", "/GRPC.HEALTH.V1.HEALTH/CHECK"]
    others += [f"{path}{more}" for path in GRPC for more in ("/", "2", "%00")] + [path.lower() for path in GRPC]
    others += sorted(declared(INFERENCE_SERVICE) - set(GRPC))
    async with grpc.aio.insecure_channel(site.grpc) as channel:
        key = (await site.ps.keys.create("k"))["key"]
        await everywhere(site)
        wrong = {
            path: found
            for path in others
            if (found := await code(channel, path, b"", [])) not in ("UNAUTHENTICATED", "UNIMPLEMENTED")
            or (path.startswith("/") and path.count("/") == 2 and found != "UNAUTHENTICATED")
        }
        assert not wrong
        assert await code(channel, "/x.Y/Z", b"", [("x-api-key", key)]) == "UNIMPLEMENTED"
