"""The verbs of /api/v1, by both clients: what each sends and returns."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import penstock
import pytest

from tests.client.fake import FakeServer

VERBS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, Any]] = [
    ("models", (), {}, "GET /api/v1/models", None),
    ("model", ("a.b_c-1",), {}, "GET /api/v1/models/a.b_c-1", None),
    ("version", ("m", 2), {}, "GET /api/v1/models/m/versions/2", None),
    ("architectures", (), {}, "GET /api/v1/architectures", None),
    ("whoami", (), {}, "GET /api/v1/whoami", None),
    ("server", (), {}, "GET /v2", None),
    ("alias", ("m", "champion", 2), {}, "PUT /api/v1/models/m/aliases/champion", {"version": 2}),
    ("alias", ("m", "blue", "champion"), {}, "PUT /api/v1/models/m/aliases/blue", {"version": "champion"}),
    ("unalias", ("m", "champion"), {}, "DELETE /api/v1/models/m/aliases/champion", None),
    ("load", ("m",), {}, "POST /api/v1/models/m/load", {}),
    ("load", ("m", 2), {}, "POST /api/v1/models/m/load", {"version": 2}),
    ("load", ("m", "champion"), {}, "POST /api/v1/models/m/load", {"version": "champion"}),
    ("load", ("m", "2"), {}, "POST /api/v1/models/m/load", {"version": 2}),
    ("unload", ("m", "champion"), {}, "POST /api/v1/models/m/unload", {"version": "champion"}),
    ("unload", ("m", 2), {}, "POST /api/v1/models/m/unload", {"version": 2}),
    ("delete", ("m",), {}, "DELETE /api/v1/models/m", None),
    ("delete", ("m", 2), {}, "DELETE /api/v1/models/m/versions/2", None),
    ("delete", ("m", "champion"), {}, "DELETE /api/v1/models/m/versions/champion", None),
    ("tag", ("m", "champion", {"a": "b"}), {}, "PUT /api/v1/models/m/versions/champion/tags", {"a": "b"}),
    ("deployment", ("m",), {}, "GET /api/v1/models/m/deployment", None),
    ("reset_deployment", ("m",), {}, "DELETE /api/v1/models/m/deployment", None),
    ("status", (), {}, "GET /api/v1/status", None),
    ("tag", ("m", 2, {"a": "b"}), {}, "PUT /api/v1/models/m/versions/2/tags", {"a": "b"}),
]


@pytest.mark.parametrize(("verb", "values", "named", "line", "body"), VERBS)
def test_each_verb_is_one_request(
    ps: Any, server: FakeServer, verb: str, values: tuple[Any, ...], named: dict[str, Any], line: str, body: Any
) -> None:
    """Method, path and body are those of the contract; an alias stands wherever a version does."""
    getattr(ps, verb)(*values, **named)
    (request,) = server.requests
    assert f"{request.method} {request.path}" == line
    assert (request.json if request.body else None) == body


def test_lists_come_without_their_wrapping(ps: Any) -> None:
    """`models()` is a list of models, `keys.list()` of keys."""
    assert [model["name"] for model in ps.models()] == ["digits"]
    assert [row["name"] for row in ps.architectures()] == ["mlp"]
    assert [key["id"] for key in ps.keys.list()] == ["k1"]


def test_load_tells_the_state(ps: Any) -> None:
    """The record of the version that was loaded."""
    assert ps.load("m", 2) == {"name": "m", "version": 2, "state": "LOAD"}


def test_a_deployment_is_changed_in_part(ps: Any, server: FakeServer) -> None:
    """What is not named stays; the revision read goes along, so that nobody's change is lost."""
    assert ps.deploy("m", replicas=2)["replicas"] == 2
    read, write = server.requests
    assert (read.method, write.method, read.path, write.path) == ("GET", "PUT", *["/api/v1/models/m/deployment"] * 2)
    kept = {"max_replicas": 4, "cpus": 0.5, "gpus": 0.25, "accelerator": "L4", "revision": 3}
    assert write.json == {"replicas": 2, **kept}
    ps.deploy("m", replicas=6, gpus=0.0, accelerator="")
    assert server.requests[-1].json == {**kept, "replicas": 6, "max_replicas": 6, "gpus": 0.0, "accelerator": ""}
    ps.deploy("m", replicas=6, max_replicas=5)
    assert server.requests[-1].json == {**kept, "replicas": 6, "max_replicas": 5}


def test_keys(ps: Any, server: FakeServer) -> None:
    """Create sends what was given and returns the secret; revoke names the id."""
    made = ps.keys.create("ci", role="deploy", owner="team", models=["churn*"], grants=["code"], expires_in_s=60)
    assert made["key"] == "psk_new_secret"
    assert server.requests[-1].json == {
        "name": "ci",
        "role": "deploy",
        "owner": "team",
        "models": ["churn*"],
        "grants": ["code"],
        "expires_in_s": 60,
    }
    ps.keys.create("plain")
    assert server.requests[-1].json == {"name": "plain", "role": "predict", "models": ["*"], "grants": []}
    ps.keys.revoke("k1")
    assert server.asked("DELETE /api/v1/keys/k1")


def test_the_package_offers_what_it_says() -> None:
    """`__all__` is the whole of it, and all of it is there."""
    assert sorted(penstock.__all__) == ["AsyncClient", "Client", "connect", "connect_async", "errors"]
    assert all(hasattr(penstock, name) for name in penstock.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = penstock.nope


SERVERS = ("core", "server", "gateway", "workers", "repository", "control", "torch", "sklearn")
LIBRARIES = ("numpy", "httpx", "rich.table")


@pytest.mark.parametrize("module", ["penstock", "penstock.cli"])
def test_the_command_starts_light(module: str) -> None:
    """Neither numpy nor an HTTP library nor any part of a server is imported before it is needed."""
    assert imported_by(module, LIBRARIES + SERVERS) == "[]"


def test_the_sdk_imports_no_part_of_a_server() -> None:
    """Not even when everything in it is used."""
    assert imported_by("penstock.client, penstock.aio, penstock.pushing, penstock.reading", SERVERS) == "[]"


def imported_by(modules: str, wanted: tuple[str, ...]) -> str:
    code = f"import sys, {modules}; print([name for name in {wanted} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return out.stdout.strip()
