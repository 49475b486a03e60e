"""What the production shape is watched with: had where it can be, done without where it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import Unavailable
from core.settings import Settings
from server import distributed, watching
from server.display import Display
from server.home import Home
from server.servers.base import Say, Server
from server.servers.ferretdb import FerretDB
from server.servers.jaeger import Jaeger
from server.servers.prometheus import Prometheus
from server.servers.rabbitmq import RabbitMQ
from server.servers.ray_head import RayHead

THEIRS = "http://collector:4317"
GIVEN = {"PENSTOCK_AMQP_URL": "amqp://there", "PENSTOCK_MONGO_URL": "mongodb://there", "RAY_ADDRESS": "there:6379"}


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, "jaeger,prometheus"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, "jaeger,prometheus"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": THEIRS}, "prometheus"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": THEIRS}, "prometheus"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": THEIRS, "PENSTOCK_JAEGER_URL": "http://jaeger"}, "jaeger,prometheus"),
    ],
)
def test_no_jaeger_is_had_where_spans_go_elsewhere(environment: dict[str, str], names: str) -> None:
    """One that shows what goes there may be named, to be shown."""
    assert watching.chosen(environment) == names


class NoJaeger(Jaeger):
    def obtain(self, say: Say, may_install: bool) -> None:
        raise Unavailable("jaeger is built with Go\nand more of it")


class Needed(FerretDB):
    def obtain(self, say: Say, may_install: bool) -> None:
        raise Unavailable("no such thing")


class Parts(distributed.Distributed):
    """Its servers, and nothing else of it."""

    async def have(self) -> None:
        self._display = Display()
        async with self._stack:
            await self._servers()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without Penstock; what a test puts there goes afterwards."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no container engine
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for variable in (*watching.ELSEWHERE, Jaeger.variable, FerretDB.variable):
        os.environ.pop(variable, None)
    os.environ |= GIVEN | {Prometheus.variable: "http://me:secret@prometheus"}


def family(*others: Server) -> tuple[Server, ...]:
    return (RabbitMQ(), RayHead(), Prometheus(), *others)


async def test_without_one_of_them_the_rest_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what is missing; it is neither exported nor shown nor written for clients."""
    monkeypatch.setattr(distributed, "family", lambda: family(FerretDB(), NoJaeger()))
    parts = Parts(Settings(home=tmp_path))
    await parts.have()
    assert capsys.readouterr().out == "going on without Jaeger: jaeger is built with Go\n"
    assert parts.watched == {"prometheus": "http://me:secret@prometheus"}
    assert not {"PENSTOCK_JAEGER_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"} & os.environ.keys()
    assert watching.greeting(parts.watched) == ["  metrics  http://me:********@prometheus      Prometheus"]


async def test_without_a_server_that_is_needed_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "family", lambda: family(Needed(), NoJaeger()))
    del os.environ["PENSTOCK_MONGO_URL"]
    with pytest.raises(Unavailable, match=r"^mongo: no such thing$"):
        await Parts(Settings(home=tmp_path)).have()


@pytest.mark.parametrize("urls", [{}, {"jaeger": "http://j"}, {"jaeger": "http://j", "prometheus": "http://p"}])
def test_clients_are_told_of_those_that_are_there(tmp_path: Path, urls: dict[str, str]) -> None:
    """In client.toml, without a key for another."""
    home = Home(tmp_path)
    try:
        home.write_client(url="http://u", grpc="g:1", control="http://c", api_key="k", **urls)
    finally:
        home.release()
    lines = (tmp_path / "client.toml").read_text().splitlines()
    assert lines[4:] == [f'{name} = "{url}"' for name, url in urls.items()]
