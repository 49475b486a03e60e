"""A record that nobody can have meant is left out and named, whichever store holds it; the others work."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from core.errors import InvalidRequest, Unavailable
from core.identity import digest_of
from repository.decoding import check_record, counted
from repository.records import Alias, ApiKey, Counter, Deployment, Record, Version, VersionState
from repository.store import Store
from repository.watch import Watch
from tests.repository.scripted import ROOT, Bench, a_state, a_version, clock_says, eventually, files_of, put_raw

KEY = ApiKey(key_id="k1", name="n", owner="o", role="predict", digest=digest_of("psk").hex(), created=1.5)
GOOD: dict[type[Record], Record] = {
    type(record): record
    for record in (
        a_version(),
        a_state("m", 1, "READY"),
        Alias(model="m", alias="champion", version=1),
        Counter(model="m", last=7),
        Deployment(model="m", replicas=2, max_replicas=8),
        KEY,
    )
}
TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}


def signature(**changes: Any) -> dict[str, Any]:
    return {"inputs": [TENSOR | changes], "outputs": []}


CASES: list[tuple[type[Record], dict[str, Any]]] = [
    (Version, {"format": "nope"}),
    (Version, {"model": "../../x"}),
    (Version, {"model": "stats"}),
    (Version, {"version": -7}),
    (Version, {"version": 0}),
    (Version, {"version": 1 << 62}),
    (Version, {"version": 1 << 80}),
    (Version, {"version": "1"}),
    (Version, {"digest": "../../../etc/passwd"}),
    (Version, {"digest": ""}),
    (Version, {"example": "../x"}),
    (Version, {"size": -1}),
    (Version, {"max_batch": -99}),
    (Version, {"max_batch": 1 << 40}),
    (Version, {"queue_bound": -1}),
    (Version, {"default_deadline_ms": -5}),
    (Version, {"default_deadline_ms": 1 << 62}),
    (Version, {"warmup": [0]}),
    (Version, {"attempt": 0}),
    (Version, {"wanted": "perhaps"}),
    (Version, {"created": 1e300}),
    (Version, {"signature": signature(datatype="FP99")}),
    (Version, {"signature": signature(shape=[-5, 1 << 62])}),
    (Version, {"signature": signature(shape=[4])}),
    (Version, {"signature": {"inputs": [TENSOR, TENSOR], "outputs": []}}),
    (VersionState, {"state": "BANANA"}),
    (VersionState, {"model": "a/b"}),
    (VersionState, {"version": -1}),
    (VersionState, {"attempt": -1}),
    (VersionState, {"updated": -1.0}),
    (Alias, {"alias": "7"}),
    (Alias, {"model": ""}),
    (Alias, {"version": 0}),
    (Counter, {"last": -1}),
    (Counter, {"last": "no"}),
    (Deployment, {"replicas": -5}),
    (Deployment, {"replicas": "many"}),
    (Deployment, {"max_replicas": 1}),
    (Deployment, {"cpus": -1e9}),
    (Deployment, {"cpus": 1e308}),
    (Deployment, {"accelerator": "\x00x"}),
    (ApiKey, {"digest": "zz"}),
    (ApiKey, {"digest": "00"}),
    (ApiKey, {"role": "god"}),
    (ApiKey, {"grants": ["x"]}),
    (ApiKey, {"patterns": ["["]}),
    (ApiKey, {"key_id": "a key"}),
    (ApiKey, {"expires": -1.0}),
]


@pytest.mark.parametrize(("kind", "wrong"), CASES, ids=lambda value: str(value)[:60])
def test_what_no_command_writes_is_refused(kind: type[Record], wrong: dict[str, Any]) -> None:
    """By type, name, format or range; and what was changed here is all that is wrong with it."""
    check_record(GOOD[kind])
    with pytest.raises((InvalidRequest, msgspec.ValidationError)):
        check_record(msgspec.convert(msgspec.to_builtins(GOOD[kind]) | wrong, kind))


DAMAGED = [
    "{",
    "",
    "null",
    "[" * 100_000,
    '{"model": "evil"}',
    msgspec.json.encode(a_version("m", 2)).decode(),
    msgspec.json.encode(msgspec.structs.replace(a_version("evil", 1), format="nope")).decode(),
]
DAMAGED_IDS = ["torn", "empty", "null", "deep", "short", "another's", "format"]


@pytest.mark.parametrize("body", DAMAGED, ids=DAMAGED_IDS)
async def test_a_damaged_record_is_left_out_and_named_once(store: Store, body: str) -> None:
    """In the log by kind and key, however often all are read; to who asks for it by itself; others come as ever."""
    good = await store.insert(a_version("m", 1))
    await put_raw(store, Version, "evil/1", body, "evil")
    with capture_logs() as logs:
        for _ in range(3):
            assert await store.find(Version) == [good]
            assert await store.find(Version, "evil") == []
        with pytest.raises(Unavailable, match="the version 'evil/1' in the repository is damaged"):
            await store.get(Version, "evil/1")
    assert [(line["event"], line["kind"], line["record"]) for line in logs] == [("record_damaged", "version", "evil/1")]
    assert await store.get(Version, "m/1") == good
    assert (await store.count(Version), await store.count(Version, "evil"), await store.count(Version, "n")) == (
        2,
        1,
        0,
    )


async def test_a_record_that_was_mended_and_broken_again_is_named_again(store: Store) -> None:
    """It is news then."""
    with capture_logs() as logs:
        for body in ("{", msgspec.json.encode(a_version()).decode(), "["):
            await put_raw(store, Version, "m/1", body, "m")
            await store.find(Version)
    assert len(logs) == 2


async def test_a_revocation_is_followed_beside_damaged_records_of_every_kind(bench: Bench) -> None:
    """Nobody who was shut out stays in, because of a record that is none of his."""
    issued = await bench.commands.create_key("victim")
    for kind in GOOD:
        await put_raw(bench.store, kind, "evil/1", "{")
    watch = Watch(bench.store, 0.02)
    await watch.refresh()
    assert [each.principal.key_id for each in watch.catalog.credentials()] == [issued.key.key_id]
    await bench.commands.revoke_key(issued.key.key_id, ROOT)
    await watch.refresh()
    assert watch.catalog.credentials() == []
    assert watch.confirmed
    await bench.push()
    await eventually(lambda: bench.state("m", 1) == "READY")


async def test_what_a_damaged_version_may_name_is_kept(bench: Bench) -> None:
    """Its artifact, its state, its alias and its deployment: it may be mended."""
    version = await bench.push()
    await bench.commands.set_alias("m", "champion", 1)
    await bench.commands.set_deployment(Deployment(model="m", replicas=2, max_replicas=2))
    other = await bench.push("n")
    await put_raw(bench.store, Version, "m/1", "{", "m")
    await bench.commands.delete_version("n", 1)
    await bench.commands.sweep()
    assert {version.digest, other.digest} <= await files_of(bench.artifacts)
    assert await bench.store.get(Alias, "m/champion") is not None
    assert await bench.store.get(VersionState, "m/1") is not None
    assert await bench.store.get(Deployment, "m") is not None
    await put_raw(bench.store, Version, "m/1", msgspec.json.encode(version).decode(), "m")
    await bench.commands.sweep()
    files = await files_of(bench.artifacts)
    assert version.digest in files
    assert other.digest not in files


async def test_a_repository_whose_keys_are_damaged_is_not_new(store: Store, bench: Bench) -> None:
    """It gets no first key."""
    await put_raw(store, ApiKey, "k1", "{")
    assert await bench.commands.first_key() is None


# --- the clock ----------------------------------------------------------------------------------------------------

WRONG_CLOCKS: list[Any] = ["abc", -7, 1.5, 1 << 70, True, [], b"\x00"]


@pytest.mark.parametrize("said", [None, *WRONG_CLOCKS], ids=str)
def test_a_clock_that_is_none_is_unavailable(said: object) -> None:
    """Whoever asks again may find it mended."""
    with pytest.raises(Unavailable, match="clock is damaged"):
        counted(said)


def test_a_clock_that_a_shell_has_set_does() -> None:
    """Some make every number a float."""
    assert [counted(said) for said in (0, 7, 7.0)] == [0, 7, 7]


@pytest.mark.parametrize("said", ["abc", -7, 1.5], ids=str)
async def test_what_was_read_stays_while_the_clock_is_wrong(store: Store, said: Any) -> None:
    """Nothing is written, no catalog taken for one that was never read; it goes on when the clock is mended."""
    await store.insert(a_version())
    watch = Watch(store, 0.02)
    await watch.refresh()
    await clock_says(store, said)
    for call in (store.revision(), watch.refresh(), store.insert(Counter(model="n", last=1))):
        with pytest.raises(Unavailable, match="clock is damaged"):
            await call
    assert watch.catalog.version("m", 1) is not None
    await clock_says(store, 100)
    assert (await watch.refresh()).revision == 100
