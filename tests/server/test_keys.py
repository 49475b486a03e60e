"""Who may come in while the repository is away, or says odd things."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from core.errors import Unauthenticated, Unavailable
from core.identity import new_key
from repository.catalog import Catalog, catalog
from repository.records import ApiKey
from repository.sqlite import SqliteStore
from repository.watch import Watch
from server.keys import Keys
from tests.repository.scripted import put_raw


async def test_a_damaged_key_keeps_no_other_from_being_revoked(tmp_path: Path) -> None:
    """Nor a new one from being known; it lets nobody in itself."""
    store = await SqliteStore.open(tmp_path / "records.sqlite")
    watch = Watch(store, 1.0)
    keys = Keys(watch)
    first, second = new_key(), new_key()
    stored = await store.insert(record(first.key_id, first.digest))
    await watch.refresh()
    assert keys.verify(first.secret.encode()).key_id == first.key_id
    await put_raw(store, ApiKey, "deadbeefdead", '{"key_id": "deadbeefdead", "role": "god", "digest": "zz"}')
    await store.replace(replace(stored, revoked=True))
    await store.insert(record(second.key_id, second.digest))
    await watch.refresh()
    with pytest.raises(Unauthenticated):
        keys.verify(first.secret.encode())
    assert keys.verify(second.secret.encode()).key_id == second.key_id
    await store.close()


async def test_keys_are_known_from_the_first_catalog_on(tmp_path: Path) -> None:
    """Whatever number it has; before it, it is no fault of the caller's."""
    store = await SqliteStore.open(tmp_path / "records.sqlite")
    watch, made = Watch(store, 1.0), new_key()
    keys = Keys(watch)
    with pytest.raises(Unavailable, match="does not answer yet"):
        keys.verify(made.secret.encode())
    watch.adopt(catalog(3, keys=[record(made.key_id, made.digest)]))
    watch.catalog = Catalog(-7)
    assert keys.verify(made.secret.encode()).key_id == made.key_id
    await store.close()


def record(key_id: str, digest: bytes) -> ApiKey:
    return ApiKey(key_id=key_id, name="n", owner="o", role="predict", digest=digest.hex(), created=1.0)
