"""The repository is away: every write is refused within the time of one call, whoever else waits for it too."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from tests.control.site import Site, site_in, upload
from tests.control.test_roles import knock, live
from tests.repository.scripted import Away, eventually

SILENCE_S = 1.0
"""What a call takes to find out that nobody answers: MongoDB's is 1.9 s."""
SLACK_S = 0.6
"""For a machine that is busy. One who waits for another's call first, and then for its own, takes up to three quarters
of a call more."""


def writes(site: Site) -> list[tuple[str, str]]:
    """Every route of the control API that changes something, as the application has them."""
    return sorted((method, path) for method, path in live(site) if method not in ("GET", "HEAD"))


async def refused(client: httpx.AsyncClient, method: str, path: str, key_id: str) -> float:
    """Seconds until a write is answered with 503."""
    begun = time.monotonic()
    answer = await knock(client, method, path, "m", key_id)
    assert answer.status_code == 503, (method, path, answer.text)
    return time.monotonic() - begun


async def test_every_write_is_refused_within_one_call(tmp_path: Path) -> None:
    """At whatever moment of the watch's own polling it comes, alone with it or among all the others."""
    away = Away(SILENCE_S)
    async with site_in(tmp_path, before=away.before) as site, site.client() as client:
        await client.post("models/m/versions", files=upload())
        await client.put("models/m/aliases/champion", json={"version": 1})
        key = (await client.post("keys", json={"name": "k"})).json()["id"]
        polling = asyncio.create_task(site.bench.watch.run())
        away.calls_left = 0
        await eventually(lambda: away.unanswered)
        took: dict[tuple[str, str], float] = {}
        for phase, routes in enumerate([writes(site), *([route] for route in writes(site))]):
            await asyncio.sleep(SILENCE_S * (0.25 + phase % 3 / 4))
            times = await asyncio.gather(*(refused(client, *route, key) for route in routes))
            took |= {route: max(once, took.get(route, 0)) for route, once in zip(routes, times, strict=True)}
        polling.cancel()
        await asyncio.wait([polling])
        away.calls_left = 1
        assert {route: once for route, once in took.items() if once > SILENCE_S + SLACK_S} == {}
