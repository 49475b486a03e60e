"""Role × route, and tenant × route: generated from the live routes, so that a new one cannot be forgotten."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from core.identity import ADMIN, DEPLOY, PERMITS, PREDICT
from tests.control.site import ROLES, Site, upload

NEEDS: dict[tuple[str, str], str] = {
    ("GET", "/api/v1/whoami"): PREDICT,
    ("GET", "/api/v1/architectures"): PREDICT,
    ("GET", "/api/v1/status"): PREDICT,
    ("GET", "/api/v1/models"): PREDICT,
    ("GET", "/api/v1/models/{model}"): PREDICT,
    ("GET", "/api/v1/models/{model}/versions/{version}"): PREDICT,
    ("POST", "/api/v1/models/{model}/versions"): DEPLOY,
    ("DELETE", "/api/v1/models/{model}"): DEPLOY,
    ("DELETE", "/api/v1/models/{model}/versions/{version}"): DEPLOY,
    ("PUT", "/api/v1/models/{model}/versions/{version}/tags"): DEPLOY,
    ("PUT", "/api/v1/models/{model}/aliases/{alias}"): DEPLOY,
    ("DELETE", "/api/v1/models/{model}/aliases/{alias}"): DEPLOY,
    ("GET", "/api/v1/models/{model}/deployment"): PREDICT,
    ("PUT", "/api/v1/models/{model}/deployment"): DEPLOY,
    ("DELETE", "/api/v1/models/{model}/deployment"): DEPLOY,
    ("POST", "/api/v1/models/{model}/load"): DEPLOY,
    ("POST", "/api/v1/models/{model}/unload"): DEPLOY,
    ("GET", "/api/v1/keys"): ADMIN,
    ("POST", "/api/v1/keys"): ADMIN,
    ("DELETE", "/api/v1/keys/{key_id}"): ADMIN,
}
"""What each route needs. A route that is not here fails the first test."""
BODIES: dict[str, dict[str, Any]] = {
    "/api/v1/models/{model}/versions/{version}/tags": {"json": {}},
    "/api/v1/models/{model}/aliases/{alias}": {"json": {"version": 1}},
    "/api/v1/models/{model}/deployment": {"json": {"replicas": 2}},
    "/api/v1/keys": {"json": {"name": "new", "models": ["a-*"]}},
}


def live(site: Site) -> set[tuple[str, str]]:
    """(method, path) of every route that the application has under /api/v1, in its document or not."""
    return {
        (method, context.path)
        for context in iter_route_contexts(site.app.routes)
        if context.path is not None and context.path.startswith("/api")
        for method in context.methods or ()
    }


async def knock(
    client: httpx.AsyncClient, method: str, path: str, model: str, key_id: str = "nobody"
) -> httpx.Response:
    """Ask a route for this model (or key), with a body that it would take."""
    named = path.format(model=model, version="1", alias="champion", key_id=key_id).removeprefix("/api/v1/")
    options = BODIES.get(path, {}) if method in ("PUT", "POST") else {}
    return await client.request(method, named, **({"files": upload()} if path.endswith("/versions") else options))


async def test_the_table_names_every_live_route_and_no_other(site: Site) -> None:
    """A new route needs a line here."""
    assert live(site) == set(NEEDS)


@pytest.mark.parametrize("route", NEEDS, ids=lambda route: " ".join(route))
async def test_each_role_may_do_what_the_table_says(site: Site, route: tuple[str, str]) -> None:
    """401 without a credential, 403 below the role, else the route's own answer; a refusal changes nothing."""
    async with site.client() as client:
        await client.post("models/a-m/versions", files=upload())
        await client.put("models/a-m/aliases/champion", json={"version": 1})
    before = await site.bench.store.revision()
    for role in ("", *sorted(ROLES, key=lambda role: len(PERMITS[role]))):
        async with site.client(role) as client:
            answer = await knock(client, *route, "a-m")
        if role and NEEDS[route] in PERMITS[role]:
            assert answer.status_code in (200, 201, 404, 409), (role, answer.text)
            return
        assert answer.status_code == (403 if role else 401)
        assert set(answer.json()) == {"error"}
        assert await site.bench.store.revision() == before
    raise AssertionError("no role may use this route")


@pytest.mark.parametrize(
    "route", [route for route in NEEDS if "{model}" in route[1]], ids=lambda route: " ".join(route)
)
async def test_a_key_of_one_tenant_touches_nothing_of_another_with_any_verb(site: Site, route: tuple[str, str]) -> None:
    """404, as for a model that is not there; nothing changes, the other's artifact neither."""
    async with site.client("b") as client:
        await client.post("models/b-m/versions", files=upload(b"secret"))
        await client.put("models/b-m/aliases/champion", json={"version": 1})
    before = await site.bench.store.revision()
    async with site.client("a") as client:
        theirs, nobodys = await knock(client, *route, "b-m"), await knock(client, *route, "b-nothing")
    assert (theirs.status_code, theirs.json()) == (404, {"error": "unknown model 'b-m'"})
    assert theirs.text == nobodys.text.replace("b-nothing", "b-m")
    assert await site.bench.store.revision() == before
    assert len(await site.bench.artifacts.digests()) == 1


async def test_lists_show_only_what_the_key_covers(site: Site) -> None:
    """Models, and keys."""
    for side in ("a", "b"):
        async with site.client(side) as client:
            await client.post(f"models/{side}-m/versions", files=upload())
    for side in ("a", "b"):
        async with site.client(side) as client:
            assert [model["name"] for model in (await client.get("models")).json()["models"]] == [f"{side}-m"]
            assert [key["name"] for key in (await client.get("keys")).json()["keys"]] == [side]


async def test_an_admin_of_some_models_cannot_reach_further_by_keys(site: Site) -> None:
    """Neither make a wider key, nor one with a grant of its own making, nor revoke another tenant's."""
    async with site.client() as client:
        others = [key["id"] for key in (await client.get("keys")).json()["keys"] if key["name"] != "a"]
    async with site.client("a") as client:
        for body in ({"models": ["*"]}, {"models": ["b-*"]}, {}, {"models": ["a-*"], "grants": ["code"]}):
            assert (await client.post("keys", json={"name": "wide", **body})).status_code == 403
        for key_id in others:
            assert (await client.delete(f"keys/{key_id}")).status_code == 404
    async with site.client() as client:
        assert not any(key["revoked"] for key in (await client.get("keys")).json()["keys"])
