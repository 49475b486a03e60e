"""The page at `/docs`: of this server alone, and its examples work as they stand."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
import pytest

from server.docs import PATHS, SCHEMES
from tests.e2e.inside import inside
from tests.running import RunningServer

MEDIA = {"html": "text/html", "js": "text/javascript", "css": "text/css", "json": "application/json"}


class Page(HTMLParser):
    """`addresses` that a page refers to, and what is `inline` in it: scripts, styles, handlers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.addresses += [told[name] or "" for name in ("src", "href", "action", "data") if name in told]
        self.inline += [name for name in told if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in told) or tag in ("iframe", "base", "object"):
            self.inline.append(tag)


@pytest.fixture
def http(running_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running_server.url, timeout=30) as client:
        yield client


@pytest.fixture
def document(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_refers_to_this_server_alone(http: httpx.Client) -> None:
    """Nothing inline, nothing of another origin, in page, style sheet and starting script; all of it is there."""
    page = Page(http.get("/docs").text)
    assert page.inline == []
    start = re.findall(r'url: "([^"]*)"', http.get("/docs/start.js").text)
    addresses = {urljoin(f"{http.base_url}/docs", each) for each in (*page.addresses, *start)} - {"data:,"}
    assert {urlsplit(each)._replace(path="").geturl() for each in addresses} == {str(http.base_url).rstrip("/")}
    assert {urlsplit(each).path for each in addresses} | {"/docs"} == PATHS
    style = http.get("/docs/swagger-ui.css").text
    assert "@import" not in style
    assert all(each.startswith("data:") for each in re.findall(r"url\([\"']?([^\"')]*)", style))


@pytest.mark.parametrize("path", sorted(PATHS))
def test_each_file_has_its_media_type(http: httpx.Client, path: str) -> None:
    """And something in it."""
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == MEDIA[path.rpartition(".")[2] if "." in path else "html"]
    assert len(answer.content) > 100


@pytest.mark.parametrize("path", sorted(PATHS - {"/openapi.json"}))
def test_the_browser_is_held_to_this_server(http: httpx.Client, path: str) -> None:
    """Its policy names no other origin and allows nothing inline and nothing evaluated."""
    headers = http.get(path).headers
    policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {source for sources in policy.values() for source in sources.split()} == {"'self'", "'none'", "data:"}
    assert [name for name, sources in policy.items() if "data:" in sources] == ["img-src"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", sorted(PATHS - {"/openapi.json"}))
def test_a_browser_keeps_what_has_not_changed(http: httpx.Client, path: str) -> None:
    """It asks again by ETag: 304 without a body for the same one, the file for another; no cache between keeps it."""
    first = http.get(path)
    assert first.headers["cache-control"] == "private, no-cache"
    again = http.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert http.get(path, headers={"If-None-Match": '"other"'}).content == first.content


@pytest.fixture
async def exposed(tmp_path: Any) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A server that listens beyond loopback."""
    async with inside(tmp_path / "home", host="0.0.0.0") as server:
        port = urlsplit(server.url).port
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client, server.api_key


async def test_beyond_loopback_every_file_needs_a_credential(exposed: tuple[httpx.AsyncClient, str]) -> None:
    """401 without one, with a key the file."""
    client, key = exposed
    for path in PATHS:
        assert (await client.get(path)).status_code == 401, path
        assert (await client.get(path, headers={"X-API-Key": key})).status_code == 200, path


# --- the document -------------------------------------------------------------------------------------------------


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield verb, path, operation


def test_what_the_document_says_of_credentials_is_so(
    http: httpx.Client, document: Any, running_server: RunningServer
) -> None:
    """Each scheme lets a key in; where it asks for none, none is needed; everywhere else it is a 401 without."""
    assert document["security"] == [{name: []} for name in SCHEMES]
    key = running_server.api_key
    for header in ({SCHEMES["apiKey"]["name"]: key}, {"Authorization": f"{SCHEMES['bearer']['scheme']} {key}"}):
        assert http.get("/v2/models", headers=header).status_code == 200
    for verb, path, operation in operations(document):
        answer = http.request(verb, path)
        assert (answer.status_code == 401) is (operation.get("security") != []), path


def test_every_operation_is_in_a_section_and_invents_no_error(document: Any) -> None:
    """422 is never answered."""
    told = {tag["name"] for tag in document["tags"]}
    for _, path, operation in operations(document):
        assert set(operation["tags"]) <= told, path
        assert "422" not in operation["responses"], path
        assert {each["in"] for each in operation.get("parameters", [])} <= {"path", "query"}
        assert path.startswith("/api/") or all(each["in"] == "path" for each in operation.get("parameters", [])), path


def filled(path: str, model: str) -> str:
    return path.replace("{model}", model).replace("{version}", "1")


def of_v2(document: Any) -> list[tuple[str, str, Any]]:
    return [each for each in operations(document) if each[1].startswith("/v2")]


def fits(answer: Any, example: Any) -> bool:
    """Whether an answer has the names and kinds of an example; its values may differ, and lists be empty."""
    if isinstance(example, dict):
        return all(name in answer and fits(answer[name], each) for name, each in example.items())
    if isinstance(example, list):
        return isinstance(answer, list) and all(fits(one, each) for one in answer for each in example[:1])
    return type(answer) is type(example)


def test_every_answer_has_the_form_of_its_example(
    http: httpx.Client, document: Any, running_server: RunningServer
) -> None:
    """All of `/v2` but infer and unload, which changes something, asked as the page asks."""
    headers = {"X-API-Key": running_server.api_key}
    http.post("/v2/models/iris/infer", json=infer_examples(document)["iris"]["value"], headers=headers)
    for verb, path, operation in of_v2(document):
        if path.endswith(("/infer", "/unload")):
            continue
        content = operation.get("requestBody", {"content": {}})["content"].get("application/json", {})
        answer = http.request(verb, filled(path, "iris"), json=content.get("example"), headers=headers)
        assert answer.status_code == 200, (path, answer.text)
        for example in operation["responses"]["200"]["content"]["application/json"]["examples"].values():
            assert fits(answer.json(), example["value"]), (path, answer.text)


def infer_examples(document: Any, path: str = "/v2/models/{model}/infer") -> Any:
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]


@pytest.mark.parametrize("path", ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"])
@pytest.mark.parametrize("model", ["iris", "digits"])
def test_the_requests_to_infer_work_as_they_stand(
    http: httpx.Client, document: Any, running_server: RunningServer, path: str, model: str
) -> None:
    """The examples of the path's parameters are the models, and the answer is the one shown, but for rounding."""
    operation = document["paths"][path]["post"]
    assert model in [each["value"] for each in operation["parameters"][0]["examples"].values()]
    headers = {"X-API-Key": running_server.api_key}
    found = http.post(filled(path, model), json=infer_examples(document, path)[model]["value"], headers=headers).json()
    shown = operation["responses"]["200"]["content"]["application/json"]["examples"][model]["value"]
    numbers, rounded = (each["outputs"][0].pop("data") for each in (found, shown))
    assert found == shown
    np.testing.assert_allclose(numbers, rounded, atol=1e-3)
