"""`/api/v1` as its callers see it: what each route answers, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from control.api import is_upload
from core.settings import Settings
from repository.architectures import ARCHITECTURES
from repository.records import ApiKey, Version
from tests.control.site import Site, site_in, stored, upload
from tests.repository.scripted import eventually, put_raw

SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2], "labels": ["no", "yes"]}],
}


async def test_whoami_says_what_the_key_is(site: Site) -> None:
    """Name, owner, role, patterns, grants."""
    async with site.client("code") as client:
        assert (await client.get("whoami")).json() == {
            "name": "code",
            "owner": "ops",
            "role": "admin",
            "models": ["*"],
            "grants": ["code"],
        }


async def test_a_push_answers_with_the_version_once_it_is_ready(site: Site) -> None:
    """201 and everything that is known of it; the same from each route that shows it."""
    async with site.client() as client:
        answer = await client.post(
            "models/m/versions",
            files=upload(b"12345", signature=SIGNATURE, tags={"run": "7"}, warmup=[1, 8], alias="champion"),
        )
        assert answer.status_code == 201
        shown = answer.json()
        assert shown | {"digest": "", "created": 0} == {
            "version": 1,
            "state": "READY",
            "reason": "",
            "format": "onnx",
            "platform": "onnx_onnxv1",
            "size": 5,
            "digest": "",
            "entry": "",
            "max_batch": 32,
            "default_deadline_ms": 30000,
            "queue_bound": 2048,
            "warmup": [1, 8],
            "signature": {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4], "labels": []}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2], "labels": ["no", "yes"]}],
            },
            "tags": {"run": "7"},
            "owner": "ops",
            "created": 0,
            "wanted": "auto",
        }
        for path in ("models/m/versions/1", "models/m/versions/champion"):
            assert (await client.get(path)).json() == shown
        model = {"name": "m", "owner": "ops", "aliases": {"champion": 1}, "versions": [shown]}
        assert (await client.get("models/m")).json() == model
        assert (await client.get("models")).json() == {"models": [model]}


async def test_versions_are_listed_newest_first(site: Site) -> None:
    """By number."""
    async with site.client() as client:
        for _ in range(3):
            await client.post("models/m/versions", files=upload())
        assert [v["version"] for v in (await client.get("models/m")).json()["versions"]] == [3, 2, 1]


async def test_a_push_that_does_not_load_is_400_with_its_number(site: Site) -> None:
    """And the reason; the version is there to be looked at."""
    site.bench.host.failing["m", 1] = "the graph has no outputs"
    async with site.client() as client:
        answer = await client.post("models/m/versions", files=upload())
        assert answer.status_code == 400
        assert answer.json()["version"] == 1
        assert "the graph has no outputs" in answer.json()["error"]
        assert (await client.get("models/m/versions/1")).json()["state"] == "UNAVAILABLE"


async def test_why_it_does_not_load_is_for_those_who_may_deploy(site: Site) -> None:
    """The reason may quote the model: others read that it is not loaded."""
    site.bench.host.failing["m", 1] = "the graph has no outputs"
    async with site.client() as client:
        await client.post("models/m/versions", files=upload())
        assert "no outputs" in (await client.get("models/m/versions/1")).json()["reason"]
    async with site.client("predict") as client:
        assert (await client.get("models/m/versions/1")).json()["reason"] == "not loaded"
        assert (await client.get("models/m")).json()["versions"][0]["reason"] == "not loaded"


async def test_a_push_waits_as_long_as_it_is_told(site: Site) -> None:
    """0: 202 at once; else 503 with the number when the time is over; an alias needs a wait."""
    site.bench.host.deaf = True
    async with site.client() as client:
        answer = await client.post("models/m/versions?wait=0", files=upload())
        assert (answer.status_code, answer.json()["version"], answer.json()["state"]) == (202, 1, "UNKNOWN")
        answer = await client.post("models/m/versions?wait=0.05", files=upload())
        assert (answer.status_code, answer.json()["version"], answer.headers["retry-after"]) == (503, 2, "1")
        answer = await client.post("models/m/versions?wait=0", files=upload(alias="champion"))
        assert (answer.status_code, answer.json()["error"][:6]) == (400, "alias:")
        for wait in ("-1", "x", "nan", "1e9"):
            answer = await client.post(f"models/m/versions?wait={wait}", files=upload())
            assert (answer.status_code, answer.json()["error"][:5]) == (400, "wait:")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"format": "pickle"}, "format:"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"max_batch": -3}, "max_batch:"),
        ({"format": "sklearn"}, "--example"),
        ({"format": "python", "entry": "Churn", "signature": SIGNATURE}, "--allow-code"),
    ],
)
async def test_a_bad_manifest_is_400_and_nothing_is_stored(
    site: Site, tmp_path: Path, manifest: dict[str, Any], said: str
) -> None:
    """The message names the field."""
    async with site.client() as client:
        answer = await client.post("models/m/versions", files=upload(**manifest))
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    assert stored(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", b"--", b"garbage" * 1000])
async def test_what_is_no_form_is_refused(site: Site, content: bytes) -> None:
    """415 for other media, pickle's too; 400 for a malformed body."""
    async with site.client() as client:
        for media, status in (
            ("application/json", 415),
            ("application/x-pickle", 415),
            ("multipart/form-data; boundary=x", 400),
        ):
            answer = await client.post("models/m/versions", content=content, headers={"Content-Type": media})
            assert (answer.status_code, set(answer.json())) == (status, {"error"})


async def test_a_damaged_record_is_nobody_elses_trouble(site: Site) -> None:
    """Models are listed, keys made, and only who asks for the record hears of it, by its name."""
    evil = {"model": "evil", "version": 1, "owner": "o", "format": "nope", "digest": "0" * 64, "size": 1}
    evil |= {"signature": {"inputs": [], "outputs": []}, "max_batch": 1, "default_deadline_ms": 1, "queue_bound": 1}
    async with site.client() as client:
        await client.post("models/m/versions", files=upload(b"1"))
        await put_raw(site.bench.store, Version, "evil/1", json.dumps(evil | {"created": 0.0}), "evil")
        await put_raw(site.bench.store, ApiKey, "deadbeefdead", "{")
        for path in ("models", "status", "keys"):
            answer = await client.get(path)
            assert (path, answer.status_code) == (path, 200)
            assert "evil" not in answer.text
        assert (await client.post("keys", json={"name": "new"})).status_code == 201
        asked = await client.get("models/evil/versions/1")
        changed = await client.put("models/evil/versions/1/tags", json={"a": "b"})
        assert (asked.status_code, changed.status_code) == (404, 503)
        assert changed.json()["error"] == "the version 'evil/1' in the repository is damaged"


async def test_code_needs_server_grant_and_word(site: Site, tmp_path: Path) -> None:
    """403 by the server or the key, 400 without the word, else it is a model like any other."""
    manifest: dict[str, Any] = {"format": "python", "entry": "Churn", "signature": SIGNATURE, "allow_code": True}
    async with site.client("admin") as client:
        assert (await client.post("models/m/versions", files=upload(**manifest))).status_code == 403
    async with site.client("code") as client:
        assert (await client.post("models/m/versions", files=upload(**manifest))).status_code == 201
    async with site_in(tmp_path / "other", Settings(allow_code=False)) as closed, closed.client("code") as client:
        assert (await client.post("models/m/versions", files=upload(**manifest))).status_code == 403


async def test_an_artifact_beyond_the_limit_is_413(tmp_path: Path) -> None:
    """With or without a declared length; nothing stays."""
    async with site_in(tmp_path, Settings(max_push_bytes=1000)) as site, site.client() as client:
        assert (await client.post("models/m/versions", files=upload(bytes(1001)))).status_code == 413
        assert (await client.post("models/m/versions", files=upload(bytes(4 << 20)))).status_code == 413
        assert (await client.post("models/m/versions", files=upload(bytes(1000)))).status_code == 201
        assert (await client.post("models/m/versions", files=upload(b""))).status_code == 400
    assert len(stored(tmp_path)) == 1


# --- aliases, tags, loading, deleting -----------------------------------------------------------------------------


async def test_aliases_are_set_moved_and_removed(site: Site) -> None:
    """By number or alias; 404 for what is not there, 400 for what is no name."""
    async with site.client() as client:
        for _ in range(2):
            await client.post("models/m/versions", files=upload())
        answer = await client.put("models/m/aliases/champion", json={"version": 1})
        assert (answer.status_code, answer.json()) == (200, {"model": "m", "alias": "champion", "version": 1})
        assert (await client.put("models/m/aliases/stable", json={"version": "champion"})).json()["version"] == 1
        assert (await client.put("models/m/aliases/x", json={"version": 9})).status_code == 404
        assert (await client.put("models/m/aliases/7", json={"version": 1})).status_code == 400
        for body in ({}, {"version": None}, {"version": True}, {"version": 1, "more": 1}, {"version": {"$gt": 0}}):
            assert (await client.put("models/m/aliases/x", json=body)).status_code == 400
        assert (await client.delete("models/m/aliases/stable")).json() == {"deleted": "m/stable"}
        assert (await client.delete("models/m/aliases/stable")).status_code == 404
        assert (await client.get("models/m")).json()["aliases"] == {"champion": 1}


async def test_load_and_unload_answer_when_done(site: Site) -> None:
    """With what is so then; with or without a body."""
    async with site.client() as client:
        await client.post("models/m/versions", files=upload())
        answer = await client.post("models/m/unload", json={"version": 1})
        assert answer.json() == {"name": "m", "version": 1, "state": "UNAVAILABLE"}
        for body in (None, {}, {"version": None}, {"version": 1}, {"version": "1"}):
            answer = (
                await client.post("models/m/load", json=body)
                if body is not None
                else await client.post("models/m/load")
            )
            assert answer.json() == {"name": "m", "version": 1, "state": "READY"}
        site.bench.host.failing["m", 1] = "broken"
        await client.post("models/m/unload")
        answer = await client.post("models/m/load")
        assert (answer.status_code, "broken" in answer.json()["error"]) == (400, True)
        assert (await client.post("models/m/load", json={"version": 9})).status_code == 404
        assert (await client.post("models/nobody/unload")).status_code == 404


async def test_an_alias_stands_wherever_a_version_does(site: Site) -> None:
    """Loaded, unloaded, tagged by it; 404 where nothing bears it."""
    async with site.client() as client:
        for _ in range(2):
            await client.post("models/m/versions", files=upload())
        await client.put("models/m/aliases/champion", json={"version": 1})
        for verb, state in (("unload", "UNAVAILABLE"), ("load", "READY")):
            answer = await client.post(f"models/m/{verb}", json={"version": "champion"})
            assert answer.json() == {"name": "m", "version": 1, "state": state}
            assert (await client.post(f"models/m/{verb}", json={"version": "nobody"})).status_code == 404
        assert (await client.put("models/m/versions/champion/tags", json={"b": "2"})).json()["version"] == 1
        assert (await client.put("models/m/versions/nobody/tags", json={})).status_code == 404


async def test_tags_are_replaced(site: Site) -> None:
    """And checked."""
    async with site.client() as client:
        await client.post("models/m/versions", files=upload(tags={"a": "1"}))
        assert (await client.put("models/m/versions/1/tags", json={"b": "2"})).json()["tags"] == {"b": "2"}
        for tags in ({"$set": "x"}, {"a.b": "x"}, {"a": 1}, ["a"]):
            assert (await client.put("models/m/versions/1/tags", json=tags)).status_code == 400
        assert (await client.get("models/m/versions/1")).json()["tags"] == {"b": "2"}


async def test_versions_and_models_are_deleted(site: Site, tmp_path: Path) -> None:
    """A version not while it is aliased, a model with its aliases; artifacts go, numbers are not given again."""
    async with site.client() as client:
        for _ in range(2):
            await client.post("models/m/versions", files=upload())
        await client.put("models/m/aliases/champion", json={"version": 1})
        for version in ("1", "champion"):
            answer = await client.delete(f"models/m/versions/{version}")
            assert (answer.status_code, "champion" in answer.json()["error"]) == (409, True)
        assert (await client.delete("models/m/versions/2")).json() == {"deleted": "m/2"}
        assert (await client.delete("models/m/versions/2")).status_code == 404
        assert (await client.delete("models/m")).json() == {"deleted": "m"}
        assert (await client.get("models/m")).status_code == 404
        assert stored(tmp_path) == set()
        assert (await client.post("models/m/versions", files=upload())).json()["version"] == 3


# --- keys ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_made_shown_once_listed_and_revoked(site: Site) -> None:
    """Once revoked it opens nothing, at once."""
    async with site.client() as client:
        answer = await client.post("keys", json={"name": "app", "models": ["m*"], "expires_in_s": 60})
        assert answer.status_code == 201
        made = answer.json()
        secret = made.pop("key")
        assert {
            "name": "app",
            "owner": "app",
            "role": "predict",
            "models": ["m*"],
            "grants": [],
        }.items() <= made.items()
        assert made["expires"] == pytest.approx(made["created"] + 60)
        listed = await client.get("keys")
        assert made in listed.json()["keys"]
        assert secret not in listed.text
        bearer = {"Authorization": f"Bearer {secret}"}
        assert (await client.get("whoami", headers=bearer)).json()["name"] == "app"
        assert (await client.delete(f"keys/{made['id']}")).json() == made | {"revoked": True}
        assert (await client.get("whoami", headers=bearer)).status_code == 401


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "name: Field required"),
        ({"name": "a", "role": "root"}, "role:"),
        ({"name": "a", "models": []}, "models:"),
        ({"name": "a", "models": ["../*"]}, "models:"),
        ({"name": "a", "models": "*"}, "models:"),
        ({"name": "a", "grants": ["root"]}, "grants:"),
        ({"name": "a", "expires_in_s": 0}, "expires_in_s:"),
        ({"name": "a\n"}, "name:"),
        ({"name": "a", "revoked": False}, "revoked: Extra"),
        ({"name": {"$gt": ""}}, "name:"),
    ],
)
async def test_a_bad_key_is_400_naming_the_field(site: Site, body: dict[str, Any], said: str) -> None:
    """And none is made."""
    async with site.client() as client:
        before = (await client.get("keys")).json()
        answer = await client.post("keys", json=body)
        assert (answer.status_code, said in answer.json()["error"]) == (400, True)
        assert (await client.get("keys")).json() == before


async def test_json_that_no_float_can_be_is_refused(site: Site) -> None:
    """NaN, infinity and lone surrogates are 400, not a defect."""
    async with site.client() as client:
        for text in (
            '{"name": "a", "expires_in_s": NaN}',
            '{"name": "a", "expires_in_s": 1e999}',
            '{"name": "\\ud800"}',
        ):
            answer = await client.post("keys", content=text, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400


# --- names and paths ----------------------------------------------------------------------------------------------

NAMES = [
    "..%2fx",
    "%2e%2e%2f%2e%2e%2fx",
    "a%2fb",
    "%00",
    "a%00",
    "%2fetc%2fpasswd",
    "stats",
    "ü",
    "%c0%ae",
    "a%0d%0ab",
    "-x",
    "x" * 129,
]


@pytest.mark.parametrize("name", NAMES)
async def test_path_traversal_in_a_name_is_refused_by_every_verb(site: Site, tmp_path: Path, name: str) -> None:
    """400 or 404, and nothing is written anywhere."""
    before = await site.bench.store.revision()
    async with site.client() as client:
        for method, path, options in (
            ("POST", f"models/{name}/versions", {"files": upload()}),
            ("GET", f"models/{name}", {}),
            ("DELETE", f"models/{name}", {}),
            ("GET", f"models/{name}/versions/1", {}),
            ("DELETE", f"models/{name}/versions/1", {}),
            ("PUT", f"models/{name}/aliases/a", {"json": {"version": 1}}),
            ("DELETE", f"models/{name}/aliases/a", {}),
            ("POST", f"models/{name}/load", {}),
            ("POST", f"models/{name}/unload", {}),
            ("PUT", f"models/{name}/versions/1/tags", {"json": {}}),
            ("DELETE", f"keys/{name}", {}),
        ):
            answer = await client.request(method, path, **options)
            assert answer.status_code in (400, 404, 405), (method, path, answer.text)
            assert set(answer.json()) == {"error"}
            assert str(tmp_path) not in answer.text
    assert await site.bench.store.revision() == before
    assert stored(tmp_path) == set()


@pytest.mark.parametrize("version", ["0", "-1", "1.0", "+1", "1e3", "\uff19", "9" * 40, "%2e%2e", "None", "%00"])
async def test_what_is_no_version_is_not_found(site: Site, version: str) -> None:
    """Whatever it is spelled like."""
    async with site.client() as client:
        await client.post("models/m/versions", files=upload())
        for method in ("GET", "DELETE"):
            assert (await client.request(method, f"models/m/versions/{version}")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/api/v1/models/m/versions", True),
        ("GET", "/api/v1/models/m/versions", False),
        ("POST", "/api/v1/models/m/versions/1", False),
        ("POST", "/api/v1/models/m/n/versions", False),
        ("POST", "/api/v1/models/m/versions\n", False),
        ("POST", "/API/v1/models/m/versions", False),
        ("POST", "/v2/api/v1/models/m/versions", False),
    ],
)
def test_only_a_push_is_an_upload(method: str, path: str, expected: bool) -> None:
    """Everything else has the ordinary limits."""
    assert is_upload(method, path) is expected


# --- the document -------------------------------------------------------------------------------------------------


async def test_every_route_is_described(site: Site) -> None:
    """A summary, tags, a response model, and the errors in their one form; the push with its two parts."""
    document = site.app.openapi()
    operations = [
        (f"{verb} {path}", operation)
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
        if path.startswith("/api/v1")
    ]
    assert len(operations) == 20
    for name, operation in operations:
        assert operation["summary"], name
        assert operation["tags"], name
        good = operation["responses"]["201" if "201" in operation["responses"] else "200"]
        assert "$ref" in good["content"]["application/json"]["schema"], name
        for status in ("400", "401", "403", "404", "503"):
            assert operation["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    form = document["paths"]["/api/v1/models/{model}/versions"]["post"]["requestBody"]["content"]
    assert set(form["multipart/form-data"]["schema"]["properties"]) == {"manifest", "artifact"}
    json.dumps(document)


async def test_architectures_are_those_of_the_table(site: Site) -> None:
    """Names and descriptions."""
    async with site.client("predict") as client:
        listed = (await client.get("architectures")).json()["architectures"]
    assert {each["name"]: each["description"] for each in listed} == ARCHITECTURES


async def test_a_list_shows_what_others_did_meanwhile(site: Site) -> None:
    """Reads ask the store, not only what was read before."""
    async with site.client() as client:
        await client.post("models/m/versions", files=upload())
        state = await eventually(lambda: site.bench.watch.catalog.states.get(("m", 1)))
        await site.bench.store.delete(state)
        assert (await client.get("models/m")).json()["versions"][0]["state"] == "UNKNOWN"
