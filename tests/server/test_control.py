"""The control plane by itself: it hears who is alive, tells others of writes, and needs nobody but the repository."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import httpx
from msgspec.structs import replace

from core import beats
from core.beats import GatewayBeat, ReplicaBeat, Share, boot_id
from core.broker import exchanges
from core.identity import ADMIN
from core.settings import Settings
from core.topology import CHANGED, EVENTS, GATEWAY, replica_key
from server.control_plane import ControlPlane
from tests.repository.scripted import a_version, eventually
from tests.running import COMMAND, clean_environment
from tests.services import Own

WITHIN_S = 30.0
AWAY_S = 3.0
"""2 s are promised; a machine that runs these tests may be busy."""
WRITES: list[tuple[str, str, object]] = [
    ("PUT", "/api/v1/models/m/deployment", {}),
    ("POST", "/api/v1/models/m/unload", None),
    ("DELETE", "/api/v1/models/m", None),
    ("POST", "/api/v1/models/m/load", None),
    ("POST", "/api/v1/keys", {"name": "k"}),
    ("DELETE", "/api/v1/models/m/versions/1", None),
]
"""Some that take the longest; all are in `tests/control/test_away.py`."""
HEALTH = ("/v2/health/live", "/v2/health/ready")
REPLICA = ReplicaBeat(
    sender="replica-1",
    boot=boot_id(),
    sent=0,
    host="h1",
    model="m",
    version=1,
    attempt=1,
    state="READY",
    device="cuda:0",
)
GATEWAY_BEAT = GatewayBeat(
    sender="gateway-1", boot=boot_id(), sent=0, host="h2", revision=1, ready=True, open=[Share("m", 1, 9, 3, 0, 2)]
)


@contextlib.asynccontextmanager
async def control(home: Path, **settings: Any) -> AsyncIterator[tuple[ControlPlane, httpx.AsyncClient]]:
    """Started on a free port, and a client without a key."""
    plane = ControlPlane(Settings(home=home, control_port=0, **settings))
    await plane.start()
    try:
        async with httpx.AsyncClient(base_url=plane.url, timeout=WITHIN_S) as client:
            yield plane, client
    finally:
        await plane.stop()


async def keyed(plane: ControlPlane, client: httpx.AsyncClient) -> None:
    issued = await plane.commands.create_key("admin", role=ADMIN)
    client.headers["X-API-Key"] = issued.secret


async def until(client: httpx.AsyncClient, path: str, status: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await client.get(path)).status_code != status:
            await asyncio.sleep(0.05)


async def beating(url: str) -> None:
    """A replica and a gateway that are alive."""
    async with await aio_pika.connect(url) as connection:
        _, exchange = await exchanges(await connection.channel())
        while True:
            for key, beat in ((replica_key("m", 1), REPLICA), (GATEWAY, GATEWAY_BEAT)):
                now = replace(beat, sent=time.monotonic_ns())
                await exchange.publish(aio_pika.Message(beats.encode(now)), key)
            await asyncio.sleep(0.2)


async def test_status_tells_who_beats(amqp_url: str, tmp_path: Path) -> None:
    """Replicas, where they run, and gateways, as the broker tells; what is no beat disturbs nothing."""
    async with control(tmp_path / "home", amqp_url=amqp_url) as (plane, client):
        await keyed(plane, client)
        alive = asyncio.create_task(beating(amqp_url))
        async with await aio_pika.connect(amqp_url) as connection:
            _, exchange = await exchanges(await connection.channel())
            await exchange.publish(aio_pika.Message(b"\xc1 no beat"), GATEWAY)
        async with asyncio.timeout(WITHIN_S):
            told: dict[str, Any] = {"listening": False, "gateways": []}
            while not (told["listening"] and told["gateways"] and told["models"]):
                told = (await client.get("/api/v1/status")).json()
        alive.cancel()
        await asyncio.wait([alive])
    (version,) = told["models"][0]["versions"]
    assert [(r["host"], r["device"], r["state"]) for r in version["where"]] == [("h1", "cuda:0", "READY")]
    assert (version["ready"], version["waiting"], version["in_flight"], version["demand"]) == (1, 3, 2, 9)
    assert [(gateway["instance"], gateway["open"]) for gateway in told["gateways"]] == [("gateway-1", ["m/1"])]


async def test_a_write_is_told_to_others(amqp_url: str, tmp_path: Path) -> None:
    """The event `changed`, at once; and one of another process makes this one look at once."""
    came = asyncio.Event()

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        came.set()

    async with (
        control(tmp_path / "home", amqp_url=amqp_url, poll_interval_s=4.0) as (plane, client),
        await aio_pika.connect(amqp_url) as connection,
    ):
        channel = await connection.channel()
        events, _ = await exchanges(channel)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(EVENTS, CHANGED)
        await queue.consume(take, no_ack=True)
        await keyed(plane, client)
        async with asyncio.timeout(WITHIN_S):
            while not came.is_set():
                assert (await client.post("/api/v1/keys", json={"name": "k"})).status_code == 201
                await asyncio.sleep(0.05)
        store = plane.watch._store
        await store.insert(a_version("m", 1))
        before = time.monotonic()
        await events.publish(aio_pika.Message(b""), CHANGED)
        await eventually(lambda: plane.watch.catalog.version("m", 1))
        assert time.monotonic() - before < 2.0


async def test_a_broker_that_is_away_is_said(tmp_path: Path) -> None:
    """Everything else goes on."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"amqp://127.0.0.1:{nobody.getsockname()[1]}/"
        async with control(tmp_path / "home", amqp_url=url) as (plane, client):
            await keyed(plane, client)
            assert (await client.get("/api/v1/status")).json()["listening"] is False
            assert (await client.get("/api/v1/models")).status_code == 200
            await until(client, HEALTH[1], 200)


async def test_what_is_open_without_a_key(tmp_path: Path) -> None:
    """Health and, on loopback, the documentation; no model is served here."""
    async with control(tmp_path / "home") as (plane, client):
        await until(client, HEALTH[1], 200)
        for path in (*HEALTH, "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/api/v1/models", "/api/v1/status", "/v2", "/"):
            assert (await client.get(path)).status_code == 401, path
        await keyed(plane, client)
        assert (await client.get("/api/v1/status")).json()["listening"] is False
        assert (await client.post("/v2/models/m/infer", json={"inputs": []})).status_code == 404


async def test_while_the_repository_is_away(own_mongo: Own, tmp_path: Path) -> None:
    """It starts, lives, is not ready, and refuses each call within 2 s; what it knew before it goes on telling."""
    settings = {"mongo_url": own_mongo.url, "mongo_database": "away"}
    own_mongo.pause()
    try:
        async with control(tmp_path / "late", **settings) as (_, client):
            assert (await client.get(HEALTH[0])).status_code == 200
            assert (await client.get(HEALTH[1])).status_code == 503
            assert (await client.get("/api/v1/models")).status_code == 401
            unknown = await client.get("/api/v1/models", headers={"X-API-Key": "psk_x"})
            assert (unknown.status_code, "repository" in unknown.json()["error"]) == (503, True)
    finally:
        own_mongo.resume()
    async with control(tmp_path / "home", **settings) as (plane, client):
        await until(client, HEALTH[1], 200)
        await keyed(plane, client)
        own_mongo.pause()
        try:
            for number, (method, path, body) in enumerate(WRITES):
                await asyncio.sleep(number % 4 * 0.5)  # at another moment of the polling each time
                begun = time.monotonic()
                answer = await client.request(method, path, json=body)
                assert (answer.status_code, time.monotonic() - begun < AWAY_S) == (503, True), (path, answer.text)
                assert answer.headers["retry-after"]
            assert (await client.get("/api/v1/status")).json()["repository"] is False
            await until(client, HEALTH[1], 503)
        finally:
            own_mongo.resume()
        await until(client, HEALTH[1], 200)
        assert (await client.get("/api/v1/models")).status_code == 200


def test_the_command_stops_cleanly_and_says_why_it_cannot_start(tmp_path: Path, mongo_url: str) -> None:
    """Exit 0 after SIGTERM; exit 1 and one sentence where the port is taken. Its settings come from a file."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    settings = tmp_path / "penstock.toml"
    settings.write_text(f'home = "{tmp_path / "home"}"\ncontrol_port = {port}\nmongo_url = "{mongo_url}"\n')
    environment = clean_environment() | {"PENSTOCK_MONGO_DATABASE": urlsplit(mongo_url).path.strip("/")}
    words = [str(COMMAND), "control", "--config", str(settings)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert "is ready" in first.stdout.readline()
        second = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=WITHIN_S)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert f"127.0.0.1:{port}" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert first.wait(WITHIN_S) == 0
