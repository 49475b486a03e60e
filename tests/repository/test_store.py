"""What every store promises, whichever it is."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest
from msgspec.structs import replace

from core.errors import Conflict, Unavailable
from repository.records import KINDS, Alias, ApiKey, Counter, Deployment, Lease, Record, Version, VersionState
from repository.store import Store
from tests.repository.conftest import BACKENDS
from tests.repository.scripted import a_state, a_version

KEY = ApiKey(key_id="k1", name="n", owner="o", role="predict", digest="00" * 32, created=1.5)
EVERY_KIND: list[Record] = [
    a_version(tags={"a": "ü"}, warmup=(1, 8)),
    a_state("m", 1, "READY"),
    Alias(model="m", alias="champion", version=1),
    Counter(model="m", last=7),
    Deployment(model="m", replicas=2, max_replicas=8, cpus=0.5, gpus=0.25, accelerator="H200"),
    KEY,
    Lease(name="reconciler", owner="one"),
]


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """Every implementation, and MongoDB's through each driver."""
    return str(request.param)


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda record: record.kind)
async def test_a_record_comes_back_as_it_was_with_revision_1(store: Store, record: Record) -> None:
    """Every kind survives the store whole."""
    inserted = await store.insert(record)
    assert inserted == replace(record, revision=1)
    assert await store.get(type(record), record.key) == inserted
    assert await store.find(type(record)) == [inserted]


def test_every_kind_is_tried() -> None:
    """A kind that joins the records joins this suite."""
    assert {type(record) for record in EVERY_KIND} == set(KINDS.values())


async def test_what_is_not_there_is_none(store: Store) -> None:
    """get answers None, find an empty list."""
    assert await store.get(Version, "m/1") is None
    assert await store.find(Version) == []
    assert await store.find(Version, "m") == []


async def test_a_key_is_taken_once(store: Store) -> None:
    """A second insert is a Conflict and changes nothing; another kind may have the same key."""
    await store.insert(a_state("m", 1, "READY"))
    with pytest.raises(Conflict, match="state 'm/1'"):
        await store.insert(a_state("m", 1, "LOADING"))
    await store.insert(a_version())
    found = await store.get(VersionState, "m/1")
    assert found is not None
    assert found.state == "READY"


async def test_replace_needs_the_revision_last_seen(store: Store) -> None:
    """Of two writers that saw the same revision the second is told so."""
    seen = await store.insert(Counter(model="m", last=1))
    second = await store.replace(replace(seen, last=2))
    assert second.revision == 2
    with pytest.raises(Conflict):
        await store.replace(replace(seen, last=3))
    assert await store.get(Counter, "m") == second


async def test_delete_needs_the_revision_last_seen(store: Store) -> None:
    """A record that changed is not deleted by who has not seen it; what is gone cannot be changed."""
    seen = await store.insert(Counter(model="m", last=1))
    now = await store.replace(replace(seen, last=2))
    with pytest.raises(Conflict):
        await store.delete(seen)
    await store.delete(now)
    assert await store.get(Counter, "m") is None
    for again in (store.delete(now), store.replace(now)):
        with pytest.raises(Conflict):
            await again


async def test_find_keeps_the_order_of_insertion_and_sorts_out_models(store: Store) -> None:
    """Records come in the order they came in, replaced or not; a model gets its own only."""
    for model, version in (("b", 1), ("a", 1), ("b", 3), ("b", 2)):
        await store.insert(a_version(model, version))
    first = await store.get(Version, "b/1")
    assert first is not None
    await store.replace(replace(first, wanted="never"))
    assert [v.key for v in await store.find(Version)] == ["b/1", "a/1", "b/3", "b/2"]
    assert [v.key for v in await store.find(Version, "b")] == ["b/1", "b/3", "b/2"]


async def test_records_without_a_model_belong_to_none(store: Store) -> None:
    """A key is found among the keys, and under no model."""
    await store.insert(KEY)
    assert len(await store.find(ApiKey)) == 1
    assert await store.find(ApiKey, "m") == []


async def test_the_revision_grows_with_every_write_and_with_nothing_else(store: Store) -> None:
    """Who polls the revision misses no write and sees none that was not."""
    seen = [await store.revision()]
    counter = await store.insert(Counter(model="m", last=1))
    seen.append(await store.revision())
    counter = await store.replace(replace(counter, last=2))
    seen.append(await store.revision())
    await store.delete(counter)
    seen.append(await store.revision())
    assert sorted(set(seen)) == seen
    with pytest.raises(Conflict):
        await store.delete(counter)
    await store.find(VersionState)
    assert await store.revision() == seen[-1]


async def test_compare_and_set_loses_no_update(store: Store) -> None:
    """Twenty concurrent increments, each tried until it holds, add up to twenty."""
    await store.insert(Counter(model="m", last=0))

    async def increment() -> None:
        while True:
            now = await store.get(Counter, "m")
            assert now is not None
            try:
                await store.replace(replace(now, last=now.last + 1))
            except Conflict:
                continue
            return

    await asyncio.gather(*(increment() for _ in range(20)))
    found = await store.get(Counter, "m")
    assert found is not None
    assert found.last == 20


@pytest.mark.parametrize("odd", ["a' OR '1'='1", "$where", "a.b", "x\x00y", "%", "ü" * 1000, ""])
async def test_no_key_is_anything_but_a_key(store: Store, odd: str) -> None:
    """What means something to a query language elsewhere is compared as it is written."""
    await store.insert(Counter(model="m", last=1))
    assert await store.get(Counter, odd) is None
    assert await store.find(Version, odd) == []


class Loose(Record, frozen=True, kw_only=True):
    """A record of whose text nothing is asked."""

    kind: ClassVar[str] = "loose"

    model: str
    tags: dict[str, str] = {}

    @property
    def key(self) -> str:
        return f"{self.model}/1"


ODD_TEXT = ["$where", "$ne", "a.b", "a.$[]", "x\x00y", "__proto__", "%", "a' OR '1'='1", "ü\U0001f600"]


@pytest.mark.parametrize("odd", ODD_TEXT)
async def test_odd_text_is_kept_as_it_is_wherever_a_caller_can_put_it(store: Store, odd: str) -> None:
    """As a model, in a key, as a tag's name and value: what comes back is what was stored, and nothing besides."""
    others = [await store.insert(Loose(model="m")), await store.insert(Loose(model="n"))]
    stored = await store.insert(Loose(model=odd, tags={odd: odd}))
    assert await store.get(Loose, stored.key) == stored
    assert await store.find(Loose, odd) == [stored]
    changed = await store.replace(replace(stored, tags={f"{odd}.{odd}": odd}))
    assert await store.find(Loose) == [*others, changed]
    await store.delete(changed)
    assert await store.find(Loose) == others


async def test_a_lease_moves_without_being_counted(store: Store) -> None:
    """No catalog is made of leases, so that nobody who polls reads everything anew each time one is renewed."""
    before = await store.revision()
    lease = await store.insert(Lease(name="reconciler", owner="one"))
    lease = await store.replace(replace(lease, owner="two"))
    assert await store.get(Lease, "reconciler") == lease
    with pytest.raises(Conflict):
        await store.replace(replace(lease, revision=1))
    assert await store.revision() == before


async def test_who_reads_a_revision_sees_the_writes_that_it_counts(store: Store) -> None:
    """While two others write."""
    done = asyncio.Event()

    async def write(model: str) -> None:
        for number in range(1, 26):
            await store.insert(a_version(model, number))

    async def read() -> None:
        while not done.is_set():
            counted = await store.revision()
            assert len(await store.find(Version)) >= counted

    reading = asyncio.create_task(read())
    await asyncio.gather(write("m"), write("n"))
    done.set()
    await reading
    assert await store.revision() == 50


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    """After close every call says so at once, and closing again is fine."""
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await store.get(Counter, "m")
    with pytest.raises(Unavailable):
        await store.revision()
