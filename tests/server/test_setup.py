"""`penstock setup`: what a new repository begins with, put there once."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.errors import Conflict, InvalidRequest, PenstockError, Unavailable
from core.identity import ADMIN, DEPLOY, OBSERVE, PREDICT, Verifier
from core.settings import Settings
from repository.artifacts import FileArtifacts
from repository.records import READY
from repository.sqlite import SqliteStore
from server.first_key import tell_clients
from server.home import Home
from server.setup import Addresses, set_up
from tests.repository.scripted import Bench, bench_of
from tests.running import COMMAND, clean_environment

HERE = Addresses("http://gateways:8080", "gateways:8081", "http://control:8082")
SAMPLES = {"digits": "onnx", "iris": "skops"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, poll_interval_s=0.05, load_timeout_s=10.0)


@pytest.fixture
async def elsewhere(settings: Settings) -> AsyncIterator[Bench]:
    """The repository, and workers on it."""
    store = await SqliteStore.open(settings.home / "repository.sqlite")
    async with bench_of(store, FileArtifacts(settings.home / "artifacts"), settings) as bench:
        watching = asyncio.create_task(bench.watch.run())
        yield bench
        watching.cancel()
        await asyncio.wait([watching])
    await store.close()


@pytest.fixture
def trained(settings: Settings) -> None:
    """Files where the training would leave them."""
    folder = settings.home / "samples"
    folder.mkdir()
    (folder / "digit.json").write_text("{}")
    for name, ending in SAMPLES.items():
        (folder / f"{name}.{ending}").write_bytes(name.encode())
        (folder / f"{name}.json").write_text('{"format": "onnx", "alias": "champion"}')


def client(settings: Settings) -> dict[str, str]:
    return tomllib.loads((settings.home / "client.toml").read_text())


def silent(step: str, share: float = 0.0) -> None: ...


async def test_clients_are_told_addresses_and_a_key_that_is_good(settings: Settings, elsewhere: Bench) -> None:
    """In a file for its owner alone; done again with another address, it is the same key."""
    bare = settings.model_copy(update={"samples": False})
    await set_up(bare, HERE, silent)
    told = client(settings)
    assert {name: told[name] for name in ("url", "grpc", "control")} == HERE._asdict()
    assert stat.S_IMODE((settings.home / "client.toml").stat().st_mode) == 0o600
    verifier = Verifier()
    verifier.replace((await elsewhere.watch.refresh()).credentials())
    assert verifier.verify(told["api_key"].encode()).role == ADMIN
    moved = HERE._replace(url="http://elsewhere:80")
    await set_up(bare, moved, silent)
    assert client(settings) == told | {"url": moved.url}


async def test_a_folder_that_serves_two_repositories_in_turn_finds_its_keys_again(
    settings: Settings, elsewhere: Bench
) -> None:
    """The other shape of the server writes its own key there; no new one is made for that."""
    bare = settings.model_copy(update={"samples": False})
    await set_up(bare, HERE, silent)
    first = client(settings)["api_key"]
    home = Home(settings.home)
    for number in range(20):
        home.write_client(url="u", grpc="g", control="c", api_key=f"other{number % 2}")
    home.release()
    await set_up(bare, HERE, silent)
    assert client(settings)["api_key"] == first
    assert len((await elsewhere.watch.refresh()).credentials()) == 1
    kept = settings.home / "former_keys"
    assert (len(kept.read_text().splitlines()), stat.S_IMODE(kept.stat().st_mode)) == (2, 0o600)


async def test_a_folder_that_takes_nothing_keeps_what_it_has(settings: Settings, elsewhere: Bench) -> None:
    """What is the same is not written again, so that a server starts on a full disk; it says what it could not write,
    and goes on. A setup, which is there for that, fails in one sentence."""
    bare = settings.model_copy(update={"samples": False})
    await set_up(bare, HERE, silent)
    told = client(settings)
    for name in ("client.toml", "former_keys"):
        (settings.home / f"{name}.partial").mkdir()
    files = sorted(settings.home.iterdir())
    await set_up(bare, HERE, silent)
    with pytest.raises(Unavailable, match="cannot be used: Is a directory"):
        await set_up(bare, HERE._replace(url="http://elsewhere:80"), silent)
    home = Home(settings.home)
    with capture_logs() as logs:
        assert tell_clients(home, **told)
        assert not tell_clients(home, **told | {"api_key": "another"})
    home.release()
    assert [line["log_level"] for line in logs] == ["warning"]
    assert client(settings) == told
    assert sorted(settings.home.iterdir()) == files


async def test_prometheus_gets_a_key_that_does_nothing_else(settings: Settings, elsewhere: Bench) -> None:
    """In a file that its group may read; kept as long as it is good, replaced when it is revoked."""
    bare, file = settings.model_copy(update={"samples": False}), settings.home / "observe_key"
    verifier, left = Verifier(), []
    for _ in range(3):
        await set_up(bare, HERE, silent, file)
        left.append(file.read_text())
        verifier.replace((await elsewhere.watch.refresh()).credentials())
        principal = verifier.verify(left[-1].encode())
        assert [action for action in (PREDICT, DEPLOY, ADMIN, OBSERVE) if principal.may(action)] == [OBSERVE]
        assert stat.S_IMODE(file.stat().st_mode) == 0o440
        if len(left) == 2:
            await elsewhere.commands.revoke_key(principal.key_id, principal)
    assert left[0] == left[1] != left[2]
    assert sorted(path.name for path in settings.home.glob("observe_key*")) == ["observe_key"]


async def test_a_key_that_cannot_be_left_is_not_made(settings: Settings, elsewhere: Bench) -> None:
    """One sentence says where it should have been."""
    bare = settings.model_copy(update={"samples": False})
    with pytest.raises(Unavailable, match=r"^the key for Prometheus cannot be left in .*: No such file or directory$"):
        await set_up(bare, HERE, silent, settings.home / "missing" / "observe_key")
    catalog = await elsewhere.watch.refresh()
    assert [key.principal.role for key in catalog.credentials()] == [ADMIN]


@pytest.mark.usefixtures("trained")
async def test_samples_are_ready_when_it_ends(settings: Settings, elsewhere: Bench) -> None:
    """Loaded by workers that are not here; a second time nothing is pushed again."""
    for _ in range(2):
        await set_up(settings, HERE, silent)
        await elsewhere.watch.refresh()
        assert {model: elsewhere.state(model, 1) for model in SAMPLES} == dict.fromkeys(SAMPLES, READY)
        assert {model: elsewhere.numbers(model) for model in SAMPLES} == {model: [1] for model in SAMPLES}


@pytest.mark.usefixtures("trained")
async def test_a_sample_that_is_not_served_is_told_and_the_key_is_there(settings: Settings, elsewhere: Bench) -> None:
    """With the workers' reason, this time and the next; whoever looks into it has a key to do so."""
    elsewhere.host.failing["digits", 1] = "no device"
    for _ in range(2):
        with pytest.raises(PenstockError, match=r"digits.*no device"):
            await set_up(settings, HERE, silent)
    assert client(settings)["api_key"]


@pytest.mark.usefixtures("trained")
async def test_without_workers_it_does_not_wait_for_ever(settings: Settings, elsewhere: Bench) -> None:
    """Each time it says which sample is not ready."""
    elsewhere.host.deaf = True
    hasty = settings.model_copy(update={"load_timeout_s": 0.2})
    for _ in range(2):
        with pytest.raises(PenstockError, match="not ready after"):
            await set_up(hasty, HERE, silent)


@pytest.mark.parametrize("wrong", [{"url": "gateways:8080"}, {"control": ""}, {"grpc": "http://gateways:8081"}])
async def test_an_address_that_is_none_is_refused(settings: Settings, wrong: dict[str, str]) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidRequest, match="is no address"):
        await set_up(settings, HERE._replace(**wrong), silent)
    assert not list(settings.home.iterdir())


async def test_a_folder_in_use_is_left_alone(settings: Settings) -> None:
    """Its server writes that client.toml."""
    home = Home(settings.home)
    try:
        with pytest.raises(Conflict):
            await set_up(settings, HERE, silent)
    finally:
        home.release()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    """In one sentence, and ends with 1; with nothing wrong, with 0, and the addresses are those of its environment."""
    environment = clean_environment() | {"PENSTOCK_HOME": str(tmp_path), "PENSTOCK_SAMPLES": "false"}
    for url, code in (("nowhere", 1), ("http://gateways:1", 0)):
        done = subprocess.run(
            [COMMAND, "setup"], env=environment | {"PENSTOCK_URL": url}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
    assert tomllib.loads((tmp_path / "client.toml").read_text())["url"] == "http://gateways:1"
