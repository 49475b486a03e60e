"""The control API put together as a server does it, and the keys that tests knock with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi import FastAPI

import control.api
from core.identity import ADMIN, CODE, DEPLOY, PREDICT, Verifier
from core.settings import Settings
from core.web import Guard, install_errors
from repository.artifacts import FileArtifacts
from repository.sqlite import SqliteStore
from repository.store import Store
from tests.repository.scripted import SETTINGS, Bench, bench_of

ROLES = (PREDICT, DEPLOY, ADMIN)


class Site(NamedTuple):
    """`secrets`: one key a role that sees every model, `code` with the grant, `a` and `b` that see a-* and b-*."""

    bench: Bench
    app: FastAPI
    guard: Guard
    secrets: Mapping[str, str]

    def client(self, who: str = "code") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.secrets[who]}"} if who else {}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.guard), base_url="http://test/api/v1/", headers=headers, timeout=30
        )


@contextlib.asynccontextmanager
async def site_in(
    folder: Path, settings: Settings = SETTINGS, before: Callable[[Store], Store] = lambda store: store
) -> AsyncIterator[Site]:
    """`before`: store → what stands before it."""
    store = await SqliteStore.open(folder / "records.sqlite")
    async with bench_of(before(store), FileArtifacts(folder / "artifacts"), settings) as bench:
        verifier = Verifier()
        bench.watch.subscribe(lambda catalog: verifier.replace(catalog.credentials()))
        app = FastAPI(redirect_slashes=False)
        install_errors(app)
        app.include_router(control.api.router(bench.commands, bench.watch, settings))
        yield Site(bench, app, Guard(app, verifier, frozenset()), await _keys(bench))
    await store.close()


async def _keys(bench: Bench) -> dict[str, str]:
    create = bench.commands.create_key
    secrets = {role: (await create(role, role=role)).secret for role in ROLES}
    secrets["code"] = (await create("code", role=ADMIN, owner="ops", grants=(CODE,))).secret
    for side in ("a", "b"):
        secrets[side] = (await create(side, role=ADMIN, patterns=(f"{side}-*",))).secret
    return secrets


def upload(artifact: bytes = b"graph", **manifest: Any) -> dict[str, Any]:
    """What httpx calls `files`: the two parts of a push."""
    return {"manifest": (None, json.dumps({"format": "onnx", **manifest})), "artifact": ("model", artifact)}


def stored(folder: Path) -> set[str]:
    """Every file below `folder`, but SQLite's own."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name}
