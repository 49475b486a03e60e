"""The one writer of desired state: what each command does, refuses, and leaves behind."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from core.errors import Conflict, InvalidRequest, NotFound, PermissionDenied, TooLarge, Unavailable
from core.identity import ADMIN, CODE, DEPLOY, PREDICT, Principal, Verifier, digest_of
from core.settings import Settings
from repository.artifacts import FileArtifacts
from repository.catalog import Catalog
from repository.commands import Commands
from repository.records import (
    READY,
    UNAVAILABLE,
    Alias,
    ApiKey,
    Counter,
    Deployment,
    Signature,
    TensorSpec,
    Version,
    VersionState,
)
from repository.sqlite import SqliteStore
from repository.store import Artifacts, Store
from repository.watch import Watch
from tests.repository.scripted import (
    DEPLOYER,
    ROOT,
    SETTINGS,
    SPEC,
    WITHIN_S,
    Away,
    Bench,
    a_state,
    a_version,
    bench_of,
    chunks,
    eventually,
    files_of,
    manifest,
)

INPUT = '{"name": "x", "datatype": "FP32", "shape": [-1, 4]}'
OUTPUT = '{"name": "y", "datatype": "FP32", "shape": [-1, 2]}'
DESCRIBED = f'{{"format": "onnx", "signature": {{"inputs": [{INPUT}], "outputs": [{OUTPUT}]}}}}'
PYTHON = DESCRIBED.replace("onnx", "python").replace('"format"', '"entry": "Churn", "format"')
EXAMPLE = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'


def with_settings(store: Store, artifacts: Artifacts, **settings: Any) -> Commands:
    return Commands(store, artifacts, Settings(**{"allow_code": True, **settings}), Watch(store, 0.05))


# --- pushing ------------------------------------------------------------------------------------------------------


async def test_a_push_is_recorded_loaded_and_ready(bench: Bench) -> None:
    """Number, owner, digest, size and every default stand in the record; the artifact is stored."""
    pushed = await bench.commands.push("m", manifest(DESCRIBED), chunks(b"ab", b"c"), DEPLOYER)
    assert (pushed.version, pushed.owner, pushed.size, pushed.format) == (1, "ops", 3, "onnx")
    assert (pushed.max_batch, pushed.signature, pushed.wanted, pushed.attempt) == (32, SPEC, "auto", 1)
    assert (pushed.default_deadline_ms, pushed.queue_bound) == (SETTINGS.default_deadline_ms, SETTINGS.queue_bound)
    assert (await bench.artifacts.fetch(pushed.digest)).read_bytes() == b"abc"
    assert (await bench.commands.settle(pushed)).state == "READY"
    assert bench.numbers() == [1]


async def test_an_example_is_kept_as_an_artifact(bench: Bench) -> None:
    """As a V2 inference request, for the first load."""
    pushed = await bench.push(text=f'{{"format": "sklearn", "example": {EXAMPLE}}}')
    kept = json.loads((await bench.artifacts.fetch(pushed.example)).read_bytes())
    assert kept["inputs"][0]["data"] == [1, 2, 3, 4]
    assert pushed.max_batch == -1


async def test_numbers_are_never_given_twice(bench: Bench) -> None:
    """Not after a version was deleted, nor the whole model, nor to two at once; each model counts for itself."""
    for expected in (1, 2):
        assert (await bench.push()).version == expected
    await bench.commands.delete_version("m", 2)
    assert (await bench.push()).version == 3
    await bench.commands.delete_model("m")
    pushed = await asyncio.gather(*(bench.push() for _ in range(8)))
    assert sorted(version.version for version in pushed) == list(range(4, 12))
    assert (await bench.push("n")).version == 1


async def test_a_version_that_does_not_load_says_why_and_leaves_the_old_one(bench: Bench) -> None:
    """The record stays, UNAVAILABLE; version 1 is still wanted and ready; the alias is not set."""
    await bench.push()
    bench.host.failing["m", 2] = "the graph has no outputs"
    with pytest.raises(InvalidRequest, match=r"version 2 of model 'm' did not load: the graph has no outputs"):
        await bench.push(text='{"format": "onnx", "alias": "champion"}')
    assert (bench.state("m", 1), bench.state("m", 2)) == ("READY", "UNAVAILABLE")
    assert bench.watch.catalog.aliases == {}


async def test_a_push_that_nobody_loads_is_unavailable_in_time(bench: Bench) -> None:
    """Not forever."""
    bench.host.deaf = True
    version = await bench.commands.push("m", manifest(), chunks(b"a"), ROOT)
    with pytest.raises(Unavailable, match="not ready after"):
        await bench.commands.settle(version, timeout=0.1)


async def test_an_alias_of_a_push_is_set_once_it_is_ready(bench: Bench) -> None:
    """And moves from version to version."""
    for number in (1, 2):
        await bench.push(text='{"format": "onnx", "alias": "champion"}')
        assert bench.watch.catalog.aliases["m"] == {"champion": number}


REFUSED: list[tuple[str, str, Principal, type[Exception], str]] = [
    ("stats", DESCRIBED, ROOT, InvalidRequest, "no model name"),
    ("../x", DESCRIBED, ROOT, InvalidRequest, "no model name"),
    ("a/b", DESCRIBED, ROOT, InvalidRequest, "no model name"),
    ("m\x00", DESCRIBED, ROOT, InvalidRequest, "no model name"),
    ("m", DESCRIBED, Principal("k", "n", "o", PREDICT), PermissionDenied, "deploy"),
    ("m", DESCRIBED, Principal("k", "n", "o", DEPLOY, ("x*",)), NotFound, "unknown model 'm'"),
    ("m", PYTHON, DEPLOYER, PermissionDenied, "grant 'code'"),
    ("m", PYTHON, ROOT, InvalidRequest, "--allow-code"),
]


@pytest.mark.parametrize(("model", "text", "who", "error", "said"), REFUSED)
async def test_a_refused_push_reads_and_stores_nothing(
    bench: Bench, model: str, text: str, who: Principal, error: type[Exception], said: str
) -> None:
    """Names, roles, patterns and grants are looked at before the first byte."""

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the artifact was read")
        yield b""

    with pytest.raises(error, match=said):
        await bench.commands.push(model, manifest(text), never(), who)
    assert await bench.store.revision() == 0
    assert await files_of(bench.artifacts) == set()


async def test_code_needs_the_switch_the_grant_and_the_word(store: Store, artifacts: Artifacts) -> None:
    """All three; without the server's switch no key and no word helps."""
    said = manifest(PYTHON.replace('"format"', '"allow_code": true, "format"'))
    off = with_settings(store, artifacts, allow_code=False)
    with pytest.raises(PermissionDenied, match="this server"):
        await off.push("m", said, chunks(b"class Churn: ..."), ROOT)
    assert (await with_settings(store, artifacts).push("m", said, chunks(b"class Churn: ..."), ROOT)).carries_code


@pytest.mark.parametrize("wrong", ["empty", "large", "broken", "store away"])
async def test_a_push_that_fails_leaves_no_artifact(
    store: Store, artifacts: Artifacts, wrong: str, tmp_path: Path
) -> None:
    """Whatever the step; a number may be lost, never reused."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionError

    class Full(SqliteStore):
        async def insert(self, record: Any) -> Any:
            if wrong == "store away" and isinstance(record, Version):
                raise Unavailable("the repository's disk is full")
            return await super().insert(record)

    opened = await Full.open(tmp_path / "other.sqlite")
    commands = with_settings(opened, artifacts, max_push_bytes=1000)
    content = {"empty": chunks(), "large": chunks(bytes(1001)), "broken": broken(), "store away": chunks(b"fine")}
    error = {"empty": InvalidRequest, "large": TooLarge, "broken": ConnectionError, "store away": Unavailable}
    with pytest.raises(error[wrong]):
        await commands.push("m", manifest(), content[wrong], ROOT)
    async with asyncio.timeout(WITHIN_S):  # a pusher who learns that the store is away does not wait for it
        while await files_of(artifacts):
            await asyncio.sleep(0.01)
    assert await opened.find(Version) == []
    await opened.close()


async def test_an_artifact_deleted_before_its_record_is_written_fails_the_push(
    store: Store, artifacts: Artifacts
) -> None:
    """A version whose artifact is gone is never recorded: the pusher is told to push again."""

    class Hasty:
        def __getattr__(self, name: str) -> Any:
            return getattr(artifacts, name)

        async def put(self, stream: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
            stored = await artifacts.put(stream, limit)
            await artifacts.delete(stored[0])
            return stored

    hasty: Any = Hasty()
    with pytest.raises(Conflict, match="push again"):
        await with_settings(store, hasty).push("m", manifest(), chunks(b"a"), ROOT)
    assert await store.find(Version) == []


# --- what the first load finds ------------------------------------------------------------------------------------


async def test_a_first_load_completes_the_record(bench: Bench) -> None:
    """Signature and max batch are decided once, by what was found."""
    pushed = await bench.push()
    assert (pushed.max_batch, pushed.signature.inputs) == (-1, ())
    done = await bench.commands.complete_signature(pushed, SPEC, -1)
    assert (done.max_batch, done.signature) == (32, SPEC)
    assert done.warmup == (1, 2, 4, 8, 16, 32), "what it was warmed with is on record"
    assert bench.now("m", 1) == done
    assert await bench.commands.complete_signature(done, SPEC, 32) == done


async def test_a_model_of_fixed_shape_does_not_batch(bench: Bench) -> None:
    """Undecided becomes 0 where a first dimension is fixed."""
    fixed = Signature((TensorSpec("x", "FP32", (1, 4)),), SPEC.outputs)
    done = await bench.commands.complete_signature(await bench.push(), fixed, -1)
    assert (done.max_batch, done.warmup) == (0, (1,))


@pytest.mark.parametrize(
    ("found", "max_batch", "said"),
    [
        (Signature((TensorSpec("z", "FP32", (-1, 4)),), SPEC.outputs), 32, "inputs"),
        (Signature(SPEC.inputs, (TensorSpec("y", "INT64", (-1, 2)),)), 32, "INT64"),
        (SPEC, 0, "max_batch: 32 was asked for"),
    ],
)
async def test_what_was_given_is_not_contradicted(bench: Bench, found: Signature, max_batch: int, said: str) -> None:
    """The load fails with both sides named, and the record stays."""
    pushed = await bench.push(text=DESCRIBED)
    with pytest.raises(InvalidRequest, match=said):
        await bench.commands.complete_signature(pushed, found, max_batch)
    assert bench.now("m", 1).signature == SPEC


# --- aliases and tags ---------------------------------------------------------------------------------------------


async def test_an_alias_moves_and_goes(bench: Bench) -> None:
    """By number, digits or another alias; what it leaves is unloaded, what it names is loaded."""
    for _ in range(3):
        await bench.push()
    await bench.commands.set_alias("m", "champion", 1)
    await eventually(lambda: bench.state("m", 1) == "READY")
    await bench.commands.set_alias("m", "stable", "champion")
    await bench.commands.set_alias("m", "champion", "2")
    assert bench.watch.catalog.aliases["m"] == {"champion": 2, "stable": 1}
    await bench.commands.delete_alias("m", "stable")
    await eventually(lambda: bench.state("m", 1) == "UNAVAILABLE")
    with pytest.raises(NotFound, match="no alias 'stable'"):
        await bench.commands.delete_alias("m", "stable")


@pytest.mark.parametrize("version", [9, "9", "nobody", "1/../2", "", "\ud800", 0, -1, 1 << 70])
async def test_an_alias_needs_a_version_that_is_there(bench: Bench, version: int | str) -> None:
    """Whatever is asked for in its place is a NotFound."""
    await bench.push()
    with pytest.raises(NotFound):
        await bench.commands.set_alias("m", "champion", version)
    assert await bench.store.find(Alias) == []


async def test_a_changed_alias_is_known_wherever_requests_come_in(bench: Bench) -> None:
    """Set or deleted, it is done when what answers from now on is served under the new revision."""
    for _ in range(2):
        await bench.push()
    waited: list[tuple[str, int, int]] = []

    async def served(model: str, version: int, revision: int) -> None:
        waited.append((model, version, revision))

    bench.commands.served = served
    await bench.commands.set_alias("m", "champion", 2)
    first = bench.watch.catalog.revision
    await bench.commands.delete_alias("m", "champion")
    assert waited == [("m", 2, first), ("m", 2, bench.watch.catalog.revision)]


async def test_a_key_is_known_and_worthless_wherever_requests_come_in(bench: Bench) -> None:
    """Given or revoked, it is done when everybody goes by the revision that says so."""
    waited: list[int] = []

    async def followed(revision: int) -> None:
        waited.append(revision)

    bench.commands.followed = followed
    issued = await bench.commands.create_key("k")
    first = bench.watch.catalog.revision
    await bench.commands.revoke_key(issued.key.key_id, ROOT)
    assert waited == [first, bench.watch.catalog.revision]
    assert first < bench.watch.catalog.revision


@pytest.mark.parametrize("alias", ["7", "a/b", "", "../x", "a\x00"])
async def test_an_alias_is_a_name(bench: Bench, alias: str) -> None:
    """Never one that a number could be taken for."""
    await bench.push()
    with pytest.raises(InvalidRequest, match="no alias"):
        await bench.commands.set_alias("m", alias, 1)


async def test_tags_are_replaced_whole(bench: Bench) -> None:
    """And survive a load by name."""
    await bench.push(text='{"format": "onnx", "tags": {"stage": "a"}}')
    assert (await bench.commands.set_tags("m", 1, {"run": "7"})).tags == {"run": "7"}
    with pytest.raises(InvalidRequest, match="tags"):
        await bench.commands.set_tags("m", 1, {"$set": "x"})
    assert bench.now("m", 1).tags == {"run": "7"}


# --- loading ------------------------------------------------------------------------------------------------------


async def test_unload_and_load_answer_when_it_is_done(bench: Bench) -> None:
    """The state is what they say, and stays so."""
    await bench.push()
    assert (await bench.commands.unload("m", 1)).state == "UNAVAILABLE"
    assert bench.state("m", 1) == "UNAVAILABLE"
    assert bench.now("m", 1).wanted == "never"
    state = await bench.commands.load("m", 1)
    assert (state.state, bench.state("m", 1)) == ("READY", "READY")
    assert (bench.now("m", 1).wanted, bench.now("m", 1).attempt) == ("auto", 2)


async def test_loading_a_ready_version_does_nothing(bench: Bench) -> None:
    """A success without a write."""
    await bench.push()
    before = await bench.store.revision()
    for version in (1, "1", None):
        assert (await bench.commands.load("m", version)).state == "READY"
    assert await bench.store.revision() == before


async def test_another_version_stays_loaded_once_loaded_by_name(bench: Bench) -> None:
    """Beside the highest, also after a further push."""
    await bench.push()
    await bench.push()
    await eventually(lambda: bench.state("m", 1) == "UNAVAILABLE")
    assert (await bench.commands.load("m", 1)).state == "READY"
    assert bench.now("m", 1).wanted == "always"
    await bench.push()
    await eventually(lambda: bench.state("m", 2) == "UNAVAILABLE")
    assert bench.state("m", 1) == "READY"


async def test_a_version_that_failed_is_tried_again_by_name(bench: Bench) -> None:
    """Each load is a new attempt, with its own outcome."""
    bench.host.failing["m", 1] = "out of memory"
    with pytest.raises(InvalidRequest, match="out of memory"):
        await bench.push()
    with pytest.raises(InvalidRequest, match="out of memory"):
        await bench.commands.load("m", 1)
    bench.host.failing.clear()
    assert (await bench.commands.load("m")).state == "READY"
    assert bench.now("m", 1).attempt == 3


async def test_a_load_under_way_is_waited_for_not_begun_again(bench: Bench) -> None:
    """Ten at once ask for one attempt, and all get its answer."""
    await bench.push()
    await bench.commands.unload("m")
    bench.host.deaf = True
    loads = [asyncio.create_task(bench.commands.load("m")) for _ in range(10)]
    await eventually(lambda: bench.now("m", 1).wanted == "auto")
    bench.host.deaf = False
    bench.watch.subscribe(lambda catalog: None)
    await bench.host.say(bench.now("m", 1), "LOADING")
    await bench.host.say(bench.now("m", 1), "READY")
    assert {state.state for state in await asyncio.gather(*loads)} == {"READY"}
    assert bench.now("m", 1).attempt <= 1 + len(loads)


async def test_unload_of_a_model_takes_all_its_versions(bench: Bench) -> None:
    """Aliased ones too; load of the model brings back what the rule wants, and answers for the champion."""
    for _ in range(3):
        await bench.push()
    await bench.commands.set_alias("m", "champion", 1)
    await bench.commands.load("m", 2)
    await bench.commands.unload("m")
    assert [bench.state("m", number) for number in (1, 2, 3)] == ["UNAVAILABLE"] * 3
    assert (await bench.commands.load("m")).version == 1
    assert [bench.state("m", number) for number in (1, 2, 3)] == ["READY", "UNAVAILABLE", "READY"]


async def test_unload_waits_for_the_worker_to_let_go(bench: Bench) -> None:
    """Not just for the wish to be written; Unavailable when it takes too long."""
    await bench.push()
    bench.host.deaf = True
    with pytest.raises(Unavailable, match="not unloaded"):
        await bench.commands.unload("m", 1, timeout=0.1)
    unload = asyncio.create_task(bench.commands.unload("m", 1))
    await bench.host.say(bench.now("m", 1), "UNLOADING")
    assert not unload.done()
    await bench.host.say(bench.now("m", 1), "UNAVAILABLE", "unloaded")
    assert (await unload).state == "UNAVAILABLE"


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_what_is_not_there_cannot_be_loaded(bench: Bench, verb: str) -> None:
    """Model or version."""
    await bench.push()
    for model, version in (("nobody", None), ("m", 9), ("nobody", 1), ("../m", None)):
        with pytest.raises(NotFound):
            await getattr(bench.commands, verb)(model, version)


async def test_waiting_for_a_version_ends_with_its_deletion(bench: Bench) -> None:
    """NotFound, at once."""
    await bench.push()
    bench.host.deaf = True
    wait = asyncio.create_task(bench.commands.wait_state("m", 1, 9, 30))
    await asyncio.sleep(0)
    await bench.store.delete(bench.now("m", 1))
    with pytest.raises(NotFound):
        await wait


# --- deleting -----------------------------------------------------------------------------------------------------


async def test_a_deleted_version_is_unloaded_first_and_leaves_nothing(bench: Bench) -> None:
    """Record, state, artifact and example are gone; the counter stays."""
    version = await bench.push(text=f'{{"format": "sklearn", "example": {EXAMPLE}}}')
    bench.host.log.clear()
    await bench.commands.delete_version("m", 1)
    assert bench.host.log == [("m", 1, "UNAVAILABLE")]
    assert (await bench.store.find(Version), await bench.store.find(VersionState)) == ([], [])
    assert await files_of(bench.artifacts) == set()
    assert len(await bench.store.find(Counter)) == 1
    with pytest.raises(NotFound):
        await bench.commands.delete_version("m", version.version)


async def test_an_artifact_goes_with_its_last_version(bench: Bench) -> None:
    """As long as another version has the same content it stays."""
    first = await bench.push(content=b"same")
    await bench.push("n", content=b"same")
    await bench.commands.delete_model("m")
    assert await bench.artifacts.digests() == [first.digest]
    await bench.commands.delete_model("n")
    assert await bench.artifacts.digests() == []


async def test_an_aliased_version_is_not_deleted(bench: Bench) -> None:
    """Conflict names the aliases; nothing is touched."""
    await bench.push()
    await bench.push()
    for alias in ("champion", "stable"):
        await bench.commands.set_alias("m", alias, 1)
    with pytest.raises(Conflict, match="'champion' and 'stable'"):
        await bench.commands.delete_version("m", 1)
    assert bench.numbers() == [1, 2]
    assert bench.state("m", 2) == "READY"


async def test_a_model_is_deleted_with_its_aliases(bench: Bench) -> None:
    """Those of another model stay, and the next push does not inherit one."""
    for model in ("m", "m", "n"):
        await bench.push(model)
    for model, alias in (("m", "champion"), ("m", "stable"), ("n", "champion")):
        await bench.commands.set_alias(model, alias, bench.numbers(model)[0])
    await bench.commands.delete_model("m")
    assert [alias.key for alias in await bench.store.find(Alias)] == ["n/champion"]
    assert (bench.numbers(), bench.numbers("n")) == ([], [1])
    await bench.push()
    assert bench.watch.catalog.aliases == {"n": {"champion": 1}}


async def test_an_alias_set_while_its_model_is_deleted_keeps_its_version(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conflict names it, and it never points at nothing."""
    for _ in range(2):
        await bench.push()
    unload = bench.commands.unload

    async def late(model: str, version: int) -> VersionState:
        if version == 2:
            await bench.commands.set_alias(model, "champion", version)
        return await unload(model, version)

    monkeypatch.setattr(bench.commands, "unload", late)
    with pytest.raises(Conflict, match="champion"):
        await bench.commands.delete_model("m")
    assert (bench.numbers(), bench.watch.catalog.aliases) == ([2], {"m": {"champion": 2}})


async def test_an_alias_set_while_its_version_is_deleted_wins_or_is_refused(bench: Bench) -> None:
    """Whatever the order of their writes, no alias ever points at nothing."""
    for _ in range(12):
        version = await bench.push()
        outcome = await asyncio.gather(
            bench.commands.delete_version("m", version.version),
            bench.commands.set_alias("m", "champion", version.version),
            return_exceptions=True,
        )
        failed = [error for error in outcome if isinstance(error, BaseException)]
        assert [type(error) in (Conflict, NotFound) for error in failed] == [True]
        alias = await bench.store.get(Alias, "m/champion")
        assert (alias is not None) == (await bench.store.get(Version, version.key) is not None)
        if alias is not None:
            await bench.commands.delete_alias("m", "champion")


async def test_the_touch_of_an_alias_is_what_a_deletion_sees(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alias written after the deletion's look, before its write: the deletion looks again and refuses."""
    await bench.push()
    await bench.push()
    await eventually(lambda: bench.state("m", 1) == "UNAVAILABLE")
    looks = 0
    look = bench.commands._aliased

    async def late(version: Version) -> Conflict | None:
        nonlocal looks
        looks += 1
        seen = await look(version)
        if looks == 2:
            await bench.commands.set_alias("m", "champion", 1)
        return seen

    monkeypatch.setattr(bench.commands, "_aliased", late)
    with pytest.raises(Conflict, match="champion"):
        await bench.commands.delete_version("m", 1)
    assert looks == 3
    assert bench.numbers() == [1, 2]


async def test_an_alias_whose_version_goes_before_the_touch_is_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other order of the same race: NotFound, and no alias stays that points at nothing."""
    version = await bench.push()
    put = bench.commands._changes.put

    async def late(alias: Alias) -> Alias:
        await bench.commands.delete_version("m", version.version)
        return await put(alias)

    monkeypatch.setattr(bench.commands._changes, "put", late)
    with pytest.raises(NotFound):
        await bench.commands.set_alias("m", "champion", 1)
    assert await bench.store.find(Alias) == []


async def test_retention_keeps_the_newest_the_aliased_and_the_loaded(store: Store, artifacts: Artifacts) -> None:
    """After a push that became ready, at most so many versions stay; others of the model go, oldest first."""
    settings = Settings(versions_kept=3, load_timeout_s=20.0)
    async with bench_of(store, artifacts, settings) as bench:
        for number in range(1, 7):
            await bench.push()
            if number == 1:
                await bench.commands.set_alias("m", "champion", 1)
            if number == 3:
                await bench.commands.load("m", 2)
        assert bench.numbers() == [1, 2, 6]
        assert len(await artifacts.digests()) == 3
        await bench.push("n")
        assert bench.numbers() == [1, 2, 6]


async def test_retention_after_a_failed_push_deletes_nothing(store: Store, artifacts: Artifacts) -> None:
    """A broken pipeline that pushes broken versions does not use up the good ones."""
    async with bench_of(store, artifacts, Settings(versions_kept=1, load_timeout_s=20.0)) as bench:
        await bench.push()
        for number in (2, 3):
            bench.host.failing["m", number] = "broken"
            with pytest.raises(InvalidRequest):
                await bench.push()
        assert bench.numbers() == [1, 2, 3]
        assert bench.state("m", 1) == "READY"


async def test_a_sweep_clears_what_crashes_left_and_nothing_else(bench: Bench) -> None:
    """Artifacts without a record, states and aliases without their version."""
    kept = await bench.push()
    await bench.artifacts.put(chunks(os.urandom(10)), 100)
    await bench.store.insert(VersionState(model="m", version=99, state="READY"))
    await bench.store.insert(Alias(model="m", alias="lost", version=99))
    await bench.commands.set_alias("m", "champion", 1)
    await bench.commands.sweep()
    assert await bench.artifacts.digests() == [kept.digest]
    assert [alias.alias for alias in await bench.store.find(Alias)] == ["champion"]
    assert [state.version for state in await bench.store.find(VersionState)] == [1]


# --- keys ---------------------------------------------------------------------------------------------------------


async def test_a_new_key_opens_the_door_and_its_secret_is_not_kept(bench: Bench) -> None:
    """Only the digest is stored; the verifier knows it as soon as the command returns."""
    verifier = Verifier()
    bench.watch.subscribe(lambda catalog: verifier.replace(catalog.credentials()))
    issued = await bench.commands.create_key("app", patterns=("m*",), giver=ROOT)
    who = verifier.verify(issued.secret.encode())
    assert (who.name, who.owner, who.role, who.patterns, who.grants) == ("app", "app", PREDICT, ("m*",), frozenset())
    (stored,) = await bench.store.find(ApiKey)
    assert bytes.fromhex(stored.digest) == digest_of(issued.secret)
    assert issued.secret[17:] not in repr(stored)


async def test_an_expiry_is_a_time(store: Store, artifacts: Artifacts) -> None:
    """Seconds from now, kept as Unix seconds."""
    commands = Commands(store, artifacts, SETTINGS, Watch(store, 1.0), clock=lambda: 1000.0)
    key = (await commands.create_key("app", expires_in_s=60.0)).key
    assert (key.created, key.expires) == (1000.0, 1060.0)


async def test_the_first_key_is_made_once(bench: Bench) -> None:
    """Admin, with the code grant; never again once there is a key, revoked or not."""
    issued = await bench.commands.first_key()
    assert issued is not None
    assert (issued.key.name, issued.key.owner, issued.key.role, issued.key.grants) == ("first", "admin", ADMIN, (CODE,))
    assert await bench.commands.first_key() is None
    await bench.commands.revoke_key(issued.key.key_id, ROOT)
    assert await bench.commands.first_key() is None


async def test_a_revoked_key_is_worthless_at_once_and_stays_listed(bench: Bench) -> None:
    """Revoking it again is fine."""
    issued = await bench.commands.create_key("app")
    for _ in range(2):
        assert (await bench.commands.revoke_key(issued.key.key_id, ROOT)).revoked
    assert bench.watch.catalog.credentials() == []
    assert [key.revoked for key in await bench.commands.keys(ROOT)] == [True]


async def test_an_admin_of_some_models_sees_and_revokes_no_key_of_others(bench: Bench) -> None:
    """Nor makes one that reaches further than its own."""
    theirs = (await bench.commands.create_key("theirs", patterns=("b-*",))).key
    mine = (await bench.commands.create_key("mine", patterns=("a-*",))).key
    some = Principal("k", "n", "o", ADMIN, ("a-*",))
    assert [key.key_id for key in await bench.commands.keys(some)] == [mine.key_id]
    for unknown in (theirs.key_id, "nobody", "../x", ""):
        with pytest.raises(NotFound):
            await bench.commands.revoke_key(unknown, some)
    with pytest.raises(PermissionDenied):
        await bench.commands.create_key("wide", giver=some)
    with pytest.raises(PermissionDenied):
        await bench.commands.create_key("code", patterns=("a-*",), grants=(CODE,), giver=some)


# --- a store that is away -----------------------------------------------------------------------------------------


async def test_every_command_is_unavailable_without_its_store(store: Store, artifacts: Artifacts) -> None:
    """A 503, not a hang and not a defect."""
    async with bench_of(store, artifacts) as bench:
        version = await bench.push()
        await store.close()
        commands = bench.commands
        for attempt in (
            commands.load("m"),
            commands.unload("m"),
            commands.set_alias("m", "a", 1),
            commands.delete_alias("m", "a"),
            commands.delete_model("m"),
            commands.delete_version("m", 1),
            commands.set_tags("m", 1, {}),
            commands.complete_signature(replace(version, max_batch=-1), SPEC, 32),
            commands.create_key("k"),
            commands.keys(ROOT),
            commands.revoke_key("k", ROOT),
            commands.first_key(),
            commands.push("m", manifest(), chunks(b"a"), ROOT),
        ):
            with pytest.raises(Unavailable):
                await attempt


# --- away --------------------------------------------------------------------------------------------------------

Command = Callable[[Commands], Awaitable[Any]]
WRITING: dict[str, Command] = {
    "push": lambda commands: commands.push(
        "m", manifest(f'{{"format": "sklearn", "example": {EXAMPLE}}}'), chunks(b"new"), ROOT
    ),
    "settle": lambda commands: commands.settle(a_version("m", 3), "champion", 0),
    "complete_signature": lambda commands: commands.complete_signature(a_version("m", 3), SPEC, 32),
    "set_alias": lambda commands: commands.set_alias("m", "candidate", 3),
    "delete_alias": lambda commands: commands.delete_alias("m", "champion"),
    "set_tags": lambda commands: commands.set_tags("m", 1, {"a": "b"}),
    "set_deployment": lambda commands: commands.set_deployment(Deployment(model="m", replicas=2, max_replicas=2)),
    "delete_deployment": lambda commands: commands.delete_deployment("m"),
    "load": lambda commands: commands.load("m", 1, 0),
    "unload": lambda commands: commands.unload("m", None, 0),
    "delete_version": lambda commands: commands.delete_version("m", 2),
    "delete_model": lambda commands: commands.delete_model("gone"),
    "create_key": lambda commands: commands.create_key("k"),
    "first_key": lambda commands: commands.first_key(),
    "revoke_key": lambda commands: commands.revoke_key("key", ROOT),
}
READING = {"keys", "wait_state", "sweep"}
"""These only ask; or, the last, are nobody's request."""
KEY = ApiKey(key_id="key", name="key", owner="ops", role=PREDICT, digest="0" * 64, created=0.0)
FILLED = (
    Counter(model="m", last=3),
    *(a_version("m", number) for number in (1, 2, 3)),
    a_state("m", 3, READY),
    a_version("gone", 1),
    a_state("gone", 1, UNAVAILABLE),
    Alias(model="m", alias="champion", version=1),
    Alias(model="gone", alias="champion", version=1),
    Deployment(model="m"),
    Deployment(model="gone"),
    KEY,
)


async def test_a_wait_for_a_load_outlives_an_election(filled: Path, tmp_path: Path) -> None:
    """Whichever of its looks at the store gets no answer, where the store is back within the time given."""
    store = await SqliteStore.open(Path(shutil.copy(filled, tmp_path / "records.sqlite")))

    async def met_it_away(calls: int) -> bool:
        away = Away()
        watch = Watch(away.before(store), 0.01)
        await watch.refresh()
        commands = Commands(store, FileArtifacts(tmp_path / "artifacts"), Settings(), watch)
        away.calls_left = calls
        waiting = asyncio.create_task(commands.settle(a_version("m", 3), None, WITHIN_S))
        await eventually(lambda: away.unanswered or waiting.done())
        away.calls_left = 1 << 62
        assert (await waiting).state == READY, f"away after {calls} calls"
        return away.unanswered > 0

    looks = 0
    while await met_it_away(looks):
        looks += 1
    await store.close()
    assert looks > 1


async def test_a_store_that_was_away_makes_no_wait_longer(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the time given is for the load."""
    store = await SqliteStore.open(Path(shutil.copy(filled, tmp_path / "records.sqlite")))
    away = Away()
    watch = Watch(away.before(store), 0.01)
    await watch.refresh()
    commands = Commands(store, FileArtifacts(tmp_path / "artifacts"), Settings(), watch)
    loop = asyncio.get_running_loop()
    away.calls_left = 0
    loop.call_later(0.25, setattr, away, "calls_left", 1 << 62)
    left: list[float] = []

    async def until(found: Callable[[Catalog], Any], timeout: float) -> None:
        left.append(timeout)

    monkeypatch.setattr(watch, "until", until)
    with pytest.raises(Unavailable, match="is not ready after 60 s"):
        await commands.wait_state("m", 3, 99, 60)
    assert left[0] <= 59.8
    await store.close()


def test_the_table_has_every_command() -> None:
    """A new one needs a line here."""
    public = {name for name, what in vars(Commands).items() if inspect.iscoroutinefunction(what) and name[0] != "_"}
    assert public == WRITING.keys() | READING


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a repository in which every command finds what it needs."""
    file = tmp_path_factory.mktemp("filled") / "records.sqlite"

    async def fill() -> None:
        store = await SqliteStore.open(file)
        for record in FILLED:
            await store.insert(record)
        await store.close()

    asyncio.run(fill())
    return file


@pytest.mark.parametrize("name", WRITING)
async def test_a_command_waits_for_an_absent_repository_only_once(name: str, filled: Path, tmp_path: Path) -> None:
    """Whichever of its calls is the first that gets no answer: no other is made after it."""
    artifacts = FileArtifacts(tmp_path / "artifacts")
    for calls in itertools.count():
        store = await SqliteStore.open(Path(shutil.copy(filled, tmp_path / f"{calls}.sqlite")))
        away = Away()
        watch = Watch(away.before(store), 60.0)
        await watch.refresh()
        commands = Commands(away.before(store), away.before(artifacts), Settings(versions_kept=1), watch)
        away.calls_left = calls
        with suppress(Unavailable):
            await WRITING[name](commands)
        assert away.unanswered <= 1, f"away after {calls} calls"
        await store.close()
        if not away.unanswered:
            break
