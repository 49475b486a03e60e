"""`penstock workers` on a real Ray cluster and a real broker: what it deploys answers, what it lets go was drained."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from core.topology import infer_queue
from repository.manifest import Described, Tensor
from repository.records import READY, UNAVAILABLE, UNLOADING, Deployment
from tests.services import Servers, fresh_vhost
from tests.workers.asking import gateway_at, until
from tests.workers.clustered import WITHIN_S, Driver, Site, driving
from tests.workers.samples import FOREVER, array_of, batch_of, doubler, looper, python_file, rows
from tests.workers.samples import version as record


@pytest.fixture(scope="module")
def settings(servers: Servers, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with fresh_vhost(servers) as url:
        home = tmp_path_factory.mktemp("site")
        short = {"drain_timeout_s": 5, "default_deadline_ms": 5_000, "child_patience_s": 1}
        yield Settings.model_validate({"amqp_url": url, "home": home, "poll_interval_s": 0.2} | short)


@pytest.fixture(scope="module")
def log(settings: Settings) -> Path:
    return settings.home.parent / "workers.log"


@pytest.fixture(scope="module")
def driver(settings: Settings, log: Path) -> Iterator[Driver]:
    with driving(settings, log) as driver:
        yield driver


@pytest.fixture
async def site(settings: Settings, log: Path, driver: Driver) -> AsyncIterator[Site]:
    """Whatever a test pushes is unloaded after it."""
    async with Site(settings, log) as site:
        yield site
        site.open = None
        for model in site.watch.catalog.versions:
            await site.commands.unload(model, timeout=WITHIN_S)


async def doubled(site: Site, model: str, version: int = 1) -> bool:
    """Whether a batch at the broker comes back as it should."""
    async with gateway_at(site.settings.amqp_url, record(model=model, number=version)) as asking:
        answer = await asking.ask(batch_of(rows(1, 2)))
        (result,) = await answer.done(WITHIN_S)
        return bool(array_of(result)[:, 0].tolist() == [2, 4])


async def test_an_update_waits_for_the_gateways_and_leaves_nothing_behind(site: Site, tmp_path: Path) -> None:
    """A push deploys one replica by itself. The old version serves until every gateway serves the new one, and its
    replicas until no gateway can send to it; then it and its queue are gone."""
    await site.push("updated", doubler(tmp_path))
    await site.state("updated", 1, READY)
    assert await doubled(site, "updated")
    site.says(("updated", 1))
    await site.push("updated", doubler(tmp_path))
    await site.state("updated", 2, READY)
    assert site.watch.catalog.state("updated", 1) == READY
    assert await doubled(site, "updated", 2)
    site.says(("updated", 1), ("updated", 2))
    await site.state("updated", 1, UNLOADING)
    assert await doubled(site, "updated")
    site.says(("updated", 2))
    await site.state("updated", 1, UNAVAILABLE, reason="unloaded")
    assert not site.replicas("updated", 1)
    async with gateway_at(site.settings.amqp_url, record(model="updated", number=2)) as asking:
        assert not await asking.exists(infer_queue("updated", 1))
        assert await asking.exists(infer_queue("updated", 2))


async def test_an_update_that_fails_leaves_the_old_version_as_it_is(site: Site, tmp_path: Path) -> None:
    """Whether the artifact is none or its code ends the process: the reason is told, the replica is the same."""
    await site.push("sturdy", doubler(tmp_path))
    (before,) = await site.until_ready("sturdy")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    await site.push("sturdy", junk)
    await site.state("sturdy", 2, UNAVAILABLE, reason="protobuf cannot be read")
    dies = python_file(tmp_path, "import os\nclass Dies:\n    predict = os._exit\n    def load(self): os._exit(3)\n")
    rows_of_four = Tensor("x", "FP32", (-1, 4))
    await site.push(
        "sturdy",
        dies,
        format="python",
        entry="Dies",
        allow_code=True,
        signature=Described((rows_of_four,), (rows_of_four,)),
    )
    await site.state("sturdy", 3, UNAVAILABLE, reason="its process died while it loaded: it ended with exit code 3")
    assert site.watch.catalog.state("sturdy", 1) == READY
    (after,) = await site.until_ready("sturdy")
    assert after.sender == before.sender
    assert await doubled(site, "sturdy")


async def test_a_replica_that_is_killed_is_replaced(site: Site, tmp_path: Path) -> None:
    """Its version stays open meanwhile."""
    await site.push("mortal", doubler(tmp_path))
    (first,) = await site.until_ready("mortal")
    await site.state("mortal", 1, READY)
    os.kill(first.pid, signal.SIGKILL)
    site.fleet.dismiss(first.sender)
    await until(lambda: first.sender not in {beat.sender for beat in site.replicas("mortal")}, WITHIN_S)
    (second,) = await site.until_ready("mortal")
    assert second.pid != first.pid
    assert await doubled(site, "mortal")
    assert site.watch.catalog.state("mortal", 1) == READY


async def test_a_replica_whose_model_hangs_is_replaced(site: Site, tmp_path: Path) -> None:
    """An ONNX graph that loops for ever, on a thread of the replica's own process, for a caller who waits three
    seconds; who comes behind it is answered by the next one."""
    await site.push("hangs", looper(tmp_path))
    (first,) = await site.until_ready("hangs")
    async with gateway_at(site.settings.amqp_url, record(model="hangs")) as asking:
        now = time.monotonic_ns()
        await asking.ask(batch_of(rows(FOREVER), deadlines=[now + 3 * 10**9]), expiration=3)
        await until(lambda: asking.heard and asking.heard[-1].in_flight)
        behind = await asking.ask(batch_of(rows(1), rows(2)))
        assert [array_of(result)[0, 0] for result in await behind.done(WITHIN_S)] == [2, 4]
        (poison,) = await asking.poison()
        assert (poison["model"], "hung" in poison["cause"]) == ("hangs", True)
    (second,) = await site.until_ready("hangs")
    assert second.pid != first.pid


async def test_a_deployment_is_followed_and_says_where_it_finds_no_node(site: Site, tmp_path: Path) -> None:
    """More replicas join those there are; what no node can hold waits, and is told, while the old ones serve."""
    await site.push("sized", doubler(tmp_path))
    (first,) = await site.until_ready("sized")
    await site.commands.set_deployment(Deployment(model="sized", replicas=2, max_replicas=2))
    both = await site.until_ready("sized", count=2)
    assert first.sender in {beat.sender for beat in both}
    await site.commands.set_deployment(Deployment(model="sized", cpus=999))
    await site.state("sized", 1, READY, reason="a replica asks for 999 CPUs: no node has that")
    assert await doubled(site, "sized")


async def test_what_no_node_can_hold_is_told_and_goes_when_it_may_be_smaller(site: Site, tmp_path: Path) -> None:
    await site.push("large", doubler(tmp_path))
    await site.commands.set_deployment(Deployment(model="large", gpus=1, accelerator="H200"))
    await site.state("large", 1, UNAVAILABLE, reason="1 GPU (H200): no node has that")
    await site.commands.set_deployment(Deployment(model="large"))
    await site.state("large", 1, READY)


async def test_the_next_process_goes_on_where_the_last_one_was_killed(
    settings: Settings, log: Path, driver: Driver, site: Site, tmp_path: Path
) -> None:
    """No replica notices. The one that waited takes over: what is pushed meanwhile is loaded."""
    await site.push("adopted", doubler(tmp_path))
    (before,) = await site.until_ready("adopted")
    connected = site.said().count("broker connected")
    with driving(settings, log):
        await until(lambda: site.said().count("broker connected") > connected, WITHIN_S)
        assert site.said().count("event=reconciling") == 1
        driver.kill()
        await site.push("late", doubler(tmp_path))
        await site.state("late", 1, READY)
        (after,) = await site.until_ready("adopted")
        assert after.sender == before.sender
        assert site.watch.catalog.state("adopted", 1) == READY
        driver.start()


async def test_nothing_that_is_handed_to_ray_holds_a_password(site: Site, settings: Settings, tmp_path: Path) -> None:
    """Replicas find the broker by a file that only its owner reads."""
    await site.push("discreet", doubler(tmp_path))
    (beat,) = await site.until_ready("discreet")
    password = settings.amqp_url.rpartition("@")[0].rpartition(":")[2].encode()
    assert password not in Path(f"/proc/{beat.pid}/environ").read_bytes()
    assert password not in Path(f"/proc/{beat.pid}/cmdline").read_bytes()
    assert (settings.home / "replica.json").stat().st_mode & 0o077 == 0
