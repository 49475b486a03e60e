"""How a model is to run: what may be asked for; it is written whole or not at all, and goes with the model."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import Conflict, InvalidRequest, NotFound
from repository.deployments import check_deployment
from repository.records import Deployment
from tests.repository.scripted import Bench

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"replicas": 2, "max_replicas": 8},
        {"replicas": 1000, "max_replicas": 1000},
        {"cpus": 0.0001},
        {"cpus": 16},
        {"gpus": 0.25},
        {"gpus": 1},
        {"gpus": 8.0, "accelerator": "H200"},
        {"gpus": 0.5, "accelerator": "AMD-Instinct-MI300X-OAM"},
        {"gpus": 1, "accelerator": "FURIOSA_RNGD"},
    ],
)
def test_what_ray_can_place_may_be_asked_for(fields: dict[str, Any]) -> None:
    """Cores and devices in shares or whole; types of devices by Ray's names."""
    asked = Deployment(model="m", **fields)
    assert check_deployment(asked) == asked


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"replicas": 1001, "max_replicas": 1001}, "replicas"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"max_replicas": 1001}, "max_replicas"),
        ({"cpus": 0.0}, "cpus"),
        ({"cpus": -1.0}, "cpus"),
        ({"cpus": 0.00001}, "cpus"),
        ({"cpus": 1e9}, "cpus"),
        ({"cpus": INF}, "cpus"),
        ({"cpus": NAN}, "cpus"),
        ({"gpus": -0.5}, "gpus"),
        ({"gpus": 1.5}, "gpus"),
        ({"gpus": 0.00001}, "gpus"),
        ({"gpus": INF}, "gpus"),
        ({"gpus": NAN}, "gpus"),
        ({"gpus": 65.0}, "gpus"),
        ({"gpus": 1.0, "accelerator": "H200; rm"}, "accelerator"),
        ({"gpus": 1.0, "accelerator": "H200\n"}, "accelerator"),
        ({"gpus": 1.0, "accelerator": "x" * 65}, "accelerator"),
        ({"accelerator": "H200"}, "accelerator"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], field: str) -> None:
    """What Ray would refuse later, or never place, is refused at once."""
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        check_deployment(Deployment(model="m", **fields))


async def test_a_deployment_is_set_changed_and_taken_back(bench: Bench) -> None:
    """The catalog follows each write; afterwards the defaults hold again."""
    await bench.push()
    first = await bench.commands.set_deployment(Deployment(model="m", replicas=2, max_replicas=4))
    assert (first.revision, bench.watch.catalog.deployment("m")) == (1, first)
    second = await bench.commands.set_deployment(Deployment(model="m", cpus=2.0))
    assert (second.revision, bench.watch.catalog.deployment("m")) == (2, second)
    assert await bench.commands.delete_deployment("m") == Deployment(model="m")
    assert bench.watch.catalog.deployments == {}
    assert await bench.commands.delete_deployment("m") == Deployment(model="m")


async def test_who_saw_another_revision_changes_nothing(bench: Bench) -> None:
    """Two that change what they both read: the second is told so, also where both saw the defaults."""
    await bench.push()
    asked = Deployment(model="m", replicas=2, max_replicas=2)
    first = await bench.commands.set_deployment(asked, seen=0)
    with pytest.raises(Conflict):
        await bench.commands.set_deployment(Deployment(model="m"), seen=0)
    second = await bench.commands.set_deployment(asked, seen=first.revision)
    with pytest.raises(Conflict):
        await bench.commands.set_deployment(Deployment(model="m"), seen=first.revision)
    assert bench.watch.catalog.deployment("m") == second


async def test_only_a_model_has_a_deployment(bench: Bench) -> None:
    """Neither set nor taken back for what is not there, whatever it is called."""
    for name in ("ghost", "../x", ""):
        with pytest.raises(NotFound):
            await bench.commands.set_deployment(Deployment(model=name))
        with pytest.raises(NotFound):
            await bench.commands.delete_deployment(name)
    assert await bench.store.find(Deployment) == []


async def test_what_cannot_be_is_not_written(bench: Bench) -> None:
    """The check comes before the store."""
    await bench.push()
    with pytest.raises(InvalidRequest):
        await bench.commands.set_deployment(Deployment(model="m", replicas=0))
    assert await bench.store.find(Deployment) == []


async def test_it_goes_with_the_model(bench: Bench) -> None:
    """With the whole model or its last version, not before; a model of the same name starts from the defaults."""
    for _ in range(2):
        await bench.push()
    asked = Deployment(model="m", replicas=2, max_replicas=2)
    await bench.commands.set_deployment(asked)
    await bench.commands.delete_version("m", 1)
    assert [kept.replicas for kept in await bench.store.find(Deployment)] == [2]
    await bench.commands.delete_version("m", 2)
    assert await bench.store.find(Deployment) == []
    await bench.push()
    await bench.commands.set_deployment(asked)
    await bench.commands.delete_model("m")
    assert await bench.store.find(Deployment) == []


async def test_a_model_deleted_meanwhile_leaves_no_deployment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """NotFound, as if the deletion had come first."""
    await bench.push()
    put = bench.commands._changes.put

    async def late(deployment: Deployment) -> Deployment:
        await bench.commands.delete_model("m")
        return await put(deployment)

    monkeypatch.setattr(bench.commands._changes, "put", late)
    with pytest.raises(NotFound):
        await bench.commands.set_deployment(Deployment(model="m"))
    assert await bench.store.find(Deployment) == []


async def test_a_sweep_clears_what_a_crash_left(bench: Bench) -> None:
    """A deployment without its model goes, others stay."""
    await bench.push()
    await bench.store.insert(Deployment(model="m"))
    await bench.store.insert(Deployment(model="ghost"))
    await bench.commands.sweep()
    assert [kept.model for kept in await bench.store.find(Deployment)] == ["m"]
