"""How a model is to run, over `/api/v1`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.control.site import Site, upload

WHERE = "models/m/deployment"
DEFAULTS = {"replicas": 1, "max_replicas": 1, "cpus": 0.1, "gpus": 0.0, "accelerator": ""}


@pytest.fixture
async def site(site: Site) -> Site:
    async with site.client() as client:
        assert (await client.post("models/m/versions", files=upload())).status_code == 201
    return site


async def test_a_deployment_is_set_read_and_taken_back(site: Site) -> None:
    """What is left out has its default; without one the defaults are shown, as revision 0."""
    defaults = {"model": "m", **DEFAULTS, "revision": 0}
    async with site.client("deploy") as client:
        assert (await client.get(WHERE)).json() == defaults
        asked = {"replicas": 2, "max_replicas": 8, "cpus": 1, "gpus": 0.5, "accelerator": "H200"}
        written = await client.put(WHERE, json=asked)
        assert (written.status_code, written.json()) == (200, {"model": "m", **asked, "revision": 1})
        assert (await client.get(WHERE)).json() == written.json()
        assert (await client.put(WHERE, json={"replicas": 3})).json() == {
            **defaults,
            "replicas": 3,
            "max_replicas": 3,
            "revision": 2,
        }
        assert (await client.delete(WHERE)).json() == defaults
        assert (await client.get(WHERE)).json() == defaults


async def test_two_who_change_what_they_read_do_not_overwrite_each_other(site: Site) -> None:
    """The revision sent along must be the present one."""
    async with site.client("deploy") as client:
        assert (await client.put(WHERE, json={"replicas": 2, "revision": 0})).status_code == 200
        refused = await client.put(WHERE, json={"replicas": 3, "revision": 0})
        assert refused.status_code == 409
        assert (await client.get(WHERE)).json()["replicas"] == 2


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": 2, "max_replicas": 1}, "max_replicas"),
        ({"replicas": "many"}, "replicas"),
        ({"replicas": 1.5}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"cpus": "1"}, "cpus"),
        ({"cpus": 0}, "cpus"),
        ({"gpus": 1.5}, "gpus"),
        ({"gpus": 1, "accelerator": "no such thing"}, "accelerator"),
        ({"revision": -1}, "revision"),
        ({"replica": 2}, "replica"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(site: Site, body: dict[str, Any], named: str) -> None:
    """400 that begins with the field, and nothing is written."""
    async with site.client("deploy") as client:
        answer = await client.put(WHERE, json=body)
        assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (400, named)
        assert (await client.get(WHERE)).json()["revision"] == 0


async def test_numbers_that_json_does_not_have_are_refused(site: Site) -> None:
    """Python's own NaN and Infinity get no further than any other wrong number."""
    async with site.client("deploy") as client:
        for text in ('{"cpus": NaN}', '{"cpus": Infinity}', '{"gpus": 1e999}', '{"replicas": 1e40}'):
            answer = await client.put(WHERE, content=text, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, text


async def test_only_a_model_has_a_deployment(site: Site) -> None:
    """404 with each verb for one that is not there."""
    async with site.client("deploy") as client:
        for answer in (
            await client.get("models/ghost/deployment"),
            await client.put("models/ghost/deployment", json={}),
            await client.delete("models/ghost/deployment"),
        ):
            assert (answer.status_code, answer.json()) == (404, {"error": "unknown model 'ghost'"})
