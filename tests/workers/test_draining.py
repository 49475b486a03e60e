"""How long a replica may take to end: what it took is answered first, and each who waits for that waits longer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings import Settings
from tests.workers.asking import Doubler, gateway_at, until
from tests.workers.samples import array_of, batch_of, rows, version
from workers import replica
from workers.draining import bounds
from workers.execution import Runner
from workers.replica import Hosted
from workers.worker import Worker


@pytest.mark.parametrize(
    ("deadline_ms", "least", "drain"),
    [(30_000, 20.0, 30.0), (1_000, 20.0, 20.0), (600_000, 20.0, 600.0), (50, 0.1, 0.1)],
)
def test_as_long_as_the_versions_deadline_and_no_shorter_than_is_set(
    deadline_ms: int, least: float, drain: float
) -> None:
    """And each bound lies within the next: Serve does not cut a drain off, nor does who waits for Serve."""
    found = bounds(deadline_ms, least)
    assert found.drain == drain
    assert found.drain + 2 < found.stop
    assert found.stop < found.gone


SERVE = """
import json
from ray.serve._private.version import DeploymentVersion
from workers.placement import Spec
from workers.serving import CODE, _deployment

def deployed(stop_s, cpus):
    made = _deployment(Spec(1, cpus), stop_s)
    return DeploymentVersion(CODE, made._deployment_config, made.ray_actor_options)

one = deployed(27.0, 1.0)
restarts = [one.requires_actor_restart(other) for other in (deployed(37.0, 1.0), deployed(27.0, 2.0))]
print(json.dumps([one.deployment_config.graceful_shutdown_timeout_s, *restarts]))
"""
"""In a process of its own: Ray's import warns."""


def test_serve_waits_that_long_and_another_time_restarts_no_replica() -> None:
    """As Serve itself decides it; other resources do."""
    found = subprocess.run([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, check=True, timeout=120)
    assert json.loads(found.stdout) == [27.0, False, True]


NAMES = """
import json
from workers.serving import place_of

print(json.dumps([place_of(name) for name in ("a.b.7", "m.-7", "m.0", "m", ".7", "m.x", "m.7x", "m.\u0667")]))
"""


def test_an_application_is_a_versions_by_its_name() -> None:
    """Also by a number that no version has: nobody wants it, so it is taken away."""
    found = subprocess.run([sys.executable, "-c", NAMES], stdout=subprocess.PIPE, check=True, timeout=120)
    assert json.loads(found.stdout) == [["a.b", 7], ["m", -7], ["m", 0], None, None, None, None, None]


async def test_what_may_take_longer_than_the_setting_is_answered_before_it_leaves(
    amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version's deadline allows it."""
    model, made = Doubler(), version(default_deadline_ms=20_000)
    worker = Worker(Runner(made, model), [], asyncio.get_running_loop().call_soon_threadsafe)
    worker.start()

    async def loaded(*_: object) -> tuple[Worker, str]:
        return worker, ""

    monkeypatch.setattr(replica, "load", loaded)
    settings = Settings(amqp_url=amqp_url, home=tmp_path, drain_timeout_s=0.1)
    async with gateway_at(amqp_url, made) as asking:
        hosted = Hosted(made, settings, "cpu")
        await hosted.start()
        await asking.until_ready()
        model.gate.clear()
        answer = await asking.ask(batch_of(rows(1)))
        await until(lambda: asking.heard[-1].in_flight)
        asyncio.get_running_loop().call_later(0.5, model.gate.set)
        await hosted.stop()
        assert array_of((await answer.done())[0])[0, 0] == 2
        assert answer.headers == [{"sequence": 0, "final": True}]
