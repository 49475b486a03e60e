"""Pushes over real connections: slow ones, broken ones, large ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from core.settings import Settings
from repository.records import Version
from tests.control.site import Site, site_in, stored
from tests.repository.scripted import eventually

MANIFEST = json.dumps({"format": "onnx"}).encode()
HEAD = (
    b'--xyz\r\nContent-Disposition: form-data; name="manifest"\r\n\r\n' + MANIFEST + b"\r\n"
    b'--xyz\r\nContent-Disposition: form-data; name="artifact"; filename="m.onnx"\r\n\r\n'
)
TAIL = b"\r\n--xyz--\r\n"
MEDIA = "multipart/form-data; boundary=xyz"


@contextlib.asynccontextmanager
async def listening(site: Site) -> AsyncIterator[int]:
    """The site behind uvicorn, on a free port of loopback."""
    config = uvicorn.Config(site.guard, port=0, lifespan="off", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


class Line:
    """A connection on which a push is spelled out byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def dial(cls, site: Site, port: int, length: int) -> Line:
        line = cls(*await asyncio.open_connection("127.0.0.1", port))
        head = (
            "POST /api/v1/models/m/versions HTTP/1.1\r\nHost: test\r\n"
            f"Authorization: Bearer {site.secrets['code']}\r\nContent-Type: {MEDIA}\r\nContent-Length: {length}\r\n\r\n"
        )
        await line.send(head.encode() + HEAD)
        return line

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, str]:
        """(status, all of it) up to the end of the connection, which is a reset where more was sent than was read."""
        came = bytearray()
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while block := await self._reader.read(1 << 16):
                    came += block
        text = came.decode()
        return int(text.split()[1]), text

    async def hang_up(self, abruptly: bool = False) -> None:
        if abruptly:
            self._writer.transport.abort()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[tuple[Site, int]]:
    """A server that measures the rate over half a second and asks for 10 kB/s."""
    async with (
        site_in(tmp_path, Settings(push_min_rate=10_000, push_window_s=0.5, load_timeout_s=20.0)) as site,
        listening(site) as port,
    ):
        yield site, port


@pytest.mark.parametrize("trickle", [b"", b"x"])
async def test_a_silent_or_trickling_upload_is_cut_off(quick: tuple[Site, int], tmp_path: Path, trickle: bytes) -> None:
    """408 and the connection closed, in time; nothing stays."""
    site, port = quick
    line = await Line.dial(site, port, 1_000_000)

    async def dripping() -> None:
        with contextlib.suppress(ConnectionError):
            while trickle:
                await line.send(trickle)
                await asyncio.sleep(0.01)

    drip = asyncio.create_task(dripping())
    status, text = await line.answer()
    drip.cancel()
    assert status == 408
    assert '{"error":"the upload is too slow: at least 10000 bytes a second are needed"}' in text
    assert "connection: close" in text.lower()
    assert stored(tmp_path) == set()
    await line.hang_up()


async def test_an_upload_that_keeps_the_rate_may_take_its_time(quick: tuple[Site, int]) -> None:
    """Over many windows."""
    site, port = quick
    content = os.urandom(8000) * 20
    line = await Line.dial(site, port, len(HEAD) + len(content) + len(TAIL))
    for at in range(0, len(content), 8000):
        await line.send(content[at : at + 8000])
        await asyncio.sleep(0.1)
    await line.send(TAIL)
    await eventually(lambda: site.bench.watch.catalog.ready("m", 1))
    version = site.bench.now("m", 1)
    assert (await site.bench.artifacts.fetch(version.digest)).read_bytes() == content
    await line.hang_up()


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path, abruptly: bool) -> None:
    """By FIN or by RST: no record, no file, no number."""
    async with site_in(tmp_path) as site, listening(site) as port:
        line = await Line.dial(site, port, 10_000_000)
        await line.send(bytes(4_000_000))
        await eventually(lambda: len(stored(tmp_path)) == 1)
        await line.hang_up(abruptly)
        await eventually(lambda: not stored(tmp_path))
        assert await site.bench.store.find(Version) == []


async def test_a_refused_upload_gets_its_answer(tmp_path: Path) -> None:
    """A small one on a connection that lives on, a large one before it was sent."""
    async with site_in(tmp_path, Settings(max_push_bytes=1 << 20)) as site, listening(site) as port:
        headers = {"Authorization": f"Bearer {site.secrets['code']}", "Content-Type": MEDIA}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1/", headers=headers) as client:
            body = HEAD.replace(b"onnx", b"none") + bytes(1 << 19) + TAIL
            answer = await client.post("models/m/versions", content=body)
            assert (answer.status_code, "connection" in answer.headers) == (400, False)
            answer = await client.post("models/m/versions", content=HEAD + bytes(3 << 20) + TAIL)
            assert answer.status_code == 413
        line = await Line.dial(site, port, 1 << 40)
        assert (await line.answer())[0] == 413
        await line.hang_up()


async def test_a_large_push_is_never_whole_in_memory(tmp_path: Path) -> None:
    """64 MiB pass through parser and disk in a few."""

    async def large() -> AsyncIterator[bytes]:
        yield HEAD
        for _ in range(1024):
            yield bytes(1 << 16)
        yield TAIL

    async with site_in(tmp_path) as site, site.client() as client:
        tracemalloc.start()
        try:
            answer = await client.post("models/m/versions", content=large(), headers={"Content-Type": MEDIA})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (answer.status_code, answer.json()["size"]) == (201, 64 << 20)
    assert peak < 16 << 20
