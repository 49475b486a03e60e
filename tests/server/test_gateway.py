"""`penstock gateway`: several processes on one socket, in front of a real broker and a real repository."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from core.identity import PREDICT
from core.settings import Settings
from repository.commands import Commands
from repository.opening import open_repository
from repository.records import READY, UNLOADING, VersionState
from repository.store import Store
from repository.watch import Watch
from tests.gateway.transports.replicas import Replica, replica_at, silent, until
from tests.running import COMMAND, alive, clean_environment
from tests.workers.samples import FOUR, version

STARTED_S = 60.0
GRPC = re.compile(r"gRPC +(\S+)\n")
"""The last that is said once all is ready."""
CALLERS = 6
MINUTE_US = 60_000_000
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]}
PATIENT = BODY | {"parameters": {"timeout": MINUTE_US}}
"""Not by the model's deadline of a second."""
SERVED = version(outputs=[FOUR], model="echo")


class Process:
    """A running `penstock gateway`. `url` once it has said so."""

    def __init__(self, log: Path, *words: str, **settings: str) -> None:
        self.log = log
        environment = clean_environment() | {f"PENSTOCK_{name.upper()}": value for name, value in settings.items()}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [COMMAND, "gateway", *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        self._of = psutil.Process(self.process.pid)

    @property
    def url(self) -> str:
        said = re.search(r"REST +(http://\S+)", self.log.read_text())
        assert said is not None, self.log.read_text()
        return said[1]

    @property
    def grpc(self) -> str:
        said = GRPC.search(self.log.read_text())
        assert said is not None, self.log.read_text()
        return said[1]

    @property
    def children(self) -> list[psutil.Process]:
        return [child for child in self._of.children() if alive(child)]

    async def started(self) -> None:
        await until(lambda: GRPC.search(self.log.read_text()) or self.process.poll() is not None, STARTED_S)
        assert self.process.poll() is None, self.log.read_text()

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 60)


class Site:
    """A repository with one READY version and a key, and a replica that answers."""

    def __init__(self, settings: dict[str, str], store: Store, secret: str, replica: Replica, folder: Path) -> None:
        self.settings = settings
        self.store = store
        self.headers = {"authorization": f"Bearer {secret}"}
        self.replica = replica
        self.folder = folder
        self._number = 0

    @contextlib.asynccontextmanager
    async def gateway(self, *words: str, **more: str) -> AsyncIterator[Process]:
        """One that has started. It must stop cleanly."""
        self._number += 1
        process = Process(self.folder / f"gateway-{self._number}.log", *words, **(self.settings | more))
        try:
            await process.started()
            yield process
            if process.process.poll() is None:
                assert await process.stop() == 0, process.log.read_text()
        finally:
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()

    async def say(self, state: str) -> None:
        known = await self.store.get(VersionState, "echo/1")
        assert known is not None
        await self.store.replace(VersionState(model="echo", version=1, state=state, revision=known.revision))


@pytest.fixture
async def site(amqp_url: str, mongo_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    settings = {
        "amqp_url": amqp_url,
        "mongo_url": mongo_url,
        "mongo_database": urlsplit(mongo_url).path.strip("/"),
        "home": str(tmp_path / "home"),
        "http_port": "0",
        "grpc_port": "0",
        "keep_alive_s": "2",
    }
    chosen = Settings(**settings)  # type: ignore[arg-type]  # as the environment gives them
    store, artifacts = await open_repository(chosen)
    commands = Commands(store, artifacts, chosen, Watch(store, 1.0))
    await store.insert(SERVED)
    await store.insert(VersionState(model="echo", version=1, state=READY))
    key = await commands.create_key("client", role=PREDICT, owner="tests")
    async with replica_at(amqp_url, SERVED) as replica:
        yield Site(settings, store, key.secret, replica, tmp_path)
    await store.close()


async def answers(client: httpx.AsyncClient, url: str, body: dict[str, Any] = BODY) -> int:
    return (await client.post(f"{url}/v2/models/echo/infer", json=body)).status_code


async def ready(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(STARTED_S):
        while (await client.get(f"{url}/v2/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)


async def test_a_request_goes_through_the_broker_and_back(site: Site) -> None:
    """With a key of the repository; without one it is refused."""
    async with site.gateway() as process, httpx.AsyncClient(headers=site.headers) as client:
        await ready(client, process.url)
        answer = await client.post(f"{process.url}/v2/models/echo/infer", json=BODY)
        assert answer.json()["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
        assert (await client.get(f"{process.url}/v2/models/other")).status_code == 404
        assert (
            await client.post(f"{process.url}/v2/models/echo/infer", headers={"Authorization": ""})
        ).status_code == 401


class Load:
    """Callers that ask again and again, each on a connection of its own; what they saw is in `seen`."""

    def __init__(self, url: str, headers: dict[str, str], callers: int = CALLERS) -> None:
        self.seen: dict[object, int] = {}
        self._over = False
        self._tasks = [asyncio.create_task(self._ask(url, headers)) for _ in range(callers)]

    async def _ask(self, url: str, headers: dict[str, str]) -> None:
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            while not self._over:
                try:
                    outcome: object = await answers(client, url, PATIENT)
                except httpx.HTTPError as error:
                    outcome = repr(error)
                self.seen[outcome] = self.seen.get(outcome, 0) + 1

    @property
    def answered(self) -> int:
        return sum(self.seen.values())

    async def more(self, count: int) -> None:
        """Wait for that many more answers."""
        aim = self.answered + count
        await until(lambda: self.answered >= aim)

    async def end(self) -> dict[object, int]:
        self._over = True
        await asyncio.gather(*self._tasks)
        return self.seen


async def test_a_process_that_is_told_to_stop_loses_no_request(site: Site) -> None:
    """Each of two in turn, under load: it drains, another takes its place, and nobody notices."""
    async with site.gateway("--processes", "2") as process, httpx.AsyncClient() as client:
        await ready(client, process.url)
        load = Load(process.url, site.headers)
        for _ in range(2):
            await until(lambda: len(process.children) == 2, STARTED_S)
            oldest = min(process.children, key=lambda child: child.create_time())
            oldest.terminate()
            await asyncio.to_thread(psutil.wait_procs, [oldest], STARTED_S)
            await load.more(50)
        await until(lambda: len(process.children) == 2, STARTED_S)
        assert set(await load.end()) == {200}


async def test_the_whole_gateway_stops_without_a_lost_request(site: Site) -> None:
    """Who comes while it drains is answered; later with 503, then not connected any more. A connection that still
    stands in the socket's backlog when it is closed is reset by the kernel: at most one for each caller."""
    async with site.gateway("--processes", "2") as process, httpx.AsyncClient() as client:
        await ready(client, process.url)
        load = Load(process.url, site.headers)
        await load.more(50)
        stopping = asyncio.create_task(process.stop())
        await until(stopping.done, 60)
        seen = await load.end()
        assert stopping.result() == 0
        assert seen[200] > 50
        odd = {str(outcome): times for outcome, times in seen.items() if outcome not in (200, 503)}
        assert sum(times for outcome, times in odd.items() if not outcome.startswith("ConnectError")) <= CALLERS, odd


class Stuck:
    """A request by REST and one by gRPC that their replica never answers."""

    def __init__(self, site: Site, process: Process) -> None:
        self.rest = asyncio.create_task(self._by_rest(site, process.url))
        self.grpc = asyncio.create_task(self._by_grpc(site, process.grpc))

    async def _by_rest(self, site: Site, url: str) -> httpx.Response:
        async with httpx.AsyncClient(headers=site.headers, timeout=60) as client:
            return await client.post(f"{url}/v2/models/echo/infer", json=BODY | {"parameters": {"timeout": MINUTE_US}})

    async def _by_grpc(self, site: Site, address: str) -> InferenceServerException:
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        async with triton.InferenceServerClient(address) as client:
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("echo", [tensor], headers=site.headers, timeout=MINUTE_US)
            return caught.value


@pytest.mark.parametrize("words", [(), ("--processes", "2")], ids=["one", "two"])
async def test_a_stop_ends_in_its_time_whatever_a_replica_does(site: Site, words: tuple[str, ...]) -> None:
    """Of a replica that hangs nothing comes; callers hear by both protocols that the server stopped, and why is logged.
    The parts of a stop share its time: the keep-alive's, a drain, and what closes."""
    site.replica.script = silent
    times = {"stop_timeout_s": "9", "drain_timeout_s": "8", "keep_alive_s": "8"}
    async with site.gateway(*words, **times) as process, httpx.AsyncClient() as client:
        await ready(client, process.url)
        stuck = Stuck(site, process)
        await until(lambda: site.replica.taken)  # the other one is behind it, comes as it stops, or is taken too
        begun = time.monotonic()
        assert await process.stop() == 0, process.log.read_text()
        assert time.monotonic() - begun < 9.5
        answer = await stuck.rest
        assert (answer.status_code, "stopped before" in answer.json()["error"]) == (503, True), answer.text
        failure = await stuck.grpc
        assert failure.status() == "StatusCode.UNAVAILABLE"
        assert "stopped before" in failure.message()
        said = process.log.read_text()
        assert "requests cut off" in said
        assert "Traceback" not in said
        assert "gateway process cut off" not in said


async def test_a_process_that_dies_is_replaced(site: Site) -> None:
    """Killed outright: the others serve on, and it is started again."""
    async with site.gateway("--processes", "2") as process, httpx.AsyncClient(headers=site.headers) as client:
        await ready(client, process.url)
        victim = process.children[0]
        victim.kill()
        await until(
            lambda: len(process.children) == 2 and victim.pid not in {c.pid for c in process.children}, STARTED_S
        )
        assert await answers(client, process.url) == 200


async def test_a_process_that_hangs_is_replaced(site: Site) -> None:
    """What the kernel still gave to its gRPC port would hang with it."""
    async with site.gateway("--processes", "2") as process, httpx.AsyncClient(headers=site.headers) as client:
        await ready(client, process.url)
        victim = process.children[0]
        victim.suspend()
        await until(lambda: victim.pid not in {child.pid for child in process.children}, STARTED_S)
        await until(lambda: "hangs" in process.log.read_text())  # it is written by a thread
        await until(lambda: len(process.children) == 2, STARTED_S)
        assert await answers(client, process.url) == 200


async def test_processes_do_not_outlive_who_started_them(site: Site) -> None:
    """Killed outright, it leaves none behind."""
    async with site.gateway("--processes", "2") as process:
        children = process.children
        assert len(children) == 2
        process.process.kill()
        process.process.wait()
        await until(lambda: not any(alive(child) for child in children), STARTED_S)


async def test_a_gateway_starts_from_its_snapshot_while_the_repository_is_away(site: Site) -> None:
    """Known keys and routes serve; nothing of it is made up: without a snapshot nobody is let in, and who
    has a key hears that it is not his fault."""
    away = {"mongo_url": "mongodb://127.0.0.1:1/"}
    async with httpx.AsyncClient(headers=site.headers) as client:
        async with site.gateway() as process:
            await ready(client, process.url)
            await until((site.folder / "home" / "snapshot").exists)
        async with site.gateway(**away) as process:
            await ready(client, process.url)
            assert await answers(client, process.url) == 200
        async with site.gateway(**away, home=str(site.folder / "other")) as process:
            assert await answers(client, process.url) == 503
            assert (await client.get(f"{process.url}/v2/health/ready")).status_code == 503
            client.headers.pop("authorization")
            assert await answers(client, process.url) == 401


async def test_routes_follow_states_and_beats(site: Site) -> None:
    """Unloaded in the repository, or without a replica that is heard: 503 with Retry-After, and back again."""
    async with site.gateway() as process, httpx.AsyncClient(headers=site.headers) as client:
        await ready(client, process.url)

        async def becomes(status: int) -> None:
            async with asyncio.timeout(20):
                while await answers(client, process.url) != status:
                    await asyncio.sleep(0.05)

        await site.say(UNLOADING)
        await becomes(503)
        await site.say(READY)
        await becomes(200)
        await site.replica.stop()
        await becomes(503)
        answer = await client.post(f"{process.url}/v2/models/echo/infer", json=BODY)
        assert answer.headers["retry-after"]
        await site.replica.start()
        await becomes(200)


@pytest.fixture
def occupied() -> Iterator[str]:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_an_occupied_port_ends_it_in_one_sentence(occupied: str, port: str, tmp_path: Path) -> None:
    refused(tmp_path, f":{occupied}: address already in use", amqp_url="amqp://127.0.0.1:1/", **{port: occupied})


def test_without_a_broker_it_says_what_to_set(tmp_path: Path) -> None:
    refused(tmp_path, "PENSTOCK_AMQP_URL")


def refused(folder: Path, why: str, **settings: str) -> None:
    """Exit 1, and one line that says why."""
    ours = {"home": str(folder), "http_port": "0", "grpc_port": "0"} | settings
    environment = clean_environment() | {f"PENSTOCK_{name.upper()}": value for name, value in ours.items()}
    done = subprocess.run([COMMAND, "gateway"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert why in done.stderr.lower() or why in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
