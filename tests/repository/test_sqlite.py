"""What is particular to SQLite: files that cannot be used, neighbours that hold the lock, the loop that never waits."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from core.errors import Unavailable
from repository import sqlite
from repository.records import Counter
from repository.sqlite import SqliteStore


def tampered(path: Path, sql: str) -> None:
    """By other hands."""
    with sqlite3.connect(path) as database:
        database.execute(sql)
    database.close()


async def refusal(path: Path) -> str:
    with pytest.raises(Unavailable) as caught:
        await SqliteStore.open(path)
    assert str(path.parent) not in caught.value.message
    return caught.value.message


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Text in place of a database is said so, and left as it is."""
    path = tmp_path / "records.sqlite"
    path.write_bytes(b"certainly no database, " * 100)
    assert "not a database" in await refusal(path)
    assert path.read_bytes().startswith(b"certainly")


async def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Another program's tables are not written beside."""
    path = tmp_path / "records.sqlite"
    tampered(path, "CREATE TABLE theirs (a)")
    assert "something else" in await refusal(path)
    with sqlite3.connect(path) as foreign:
        assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
        assert foreign.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    foreign.close()


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    """An older server does not write into what a newer one made."""
    path = tmp_path / "records.sqlite"
    await (await SqliteStore.open(path)).close()
    tampered(path, "PRAGMA user_version = 99")
    assert "format 99" in await refusal(path)


async def test_a_folder_or_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    """What cannot be opened is a sentence, not a traceback."""
    assert "cannot be used" in await refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "cannot be used" in await refusal(tmp_path / "file" / "records.sqlite")


async def test_damage_found_later_is_unavailable(tmp_path: Path) -> None:
    """A record that no longer decodes is a clear error, and the store goes on answering for the others."""
    path = tmp_path / "records.sqlite"
    store = await SqliteStore.open(path)
    for model in ("a", "b"):
        await store.insert(Counter(model=model, last=1))
    tampered(path, "UPDATE records SET body = '{\"last\": \"no\"}' WHERE key = 'a'")
    with pytest.raises(Unavailable, match="damaged"):
        await store.get(Counter, "a")
    assert await store.get(Counter, "b") is not None
    await store.close()


async def test_text_that_is_none_ends_no_reading(tmp_path: Path) -> None:
    """SQLite keeps any bytes as text: those of one record are not in the way of the others."""
    path = tmp_path / "records.sqlite"
    store = await SqliteStore.open(path)
    good = await store.insert(Counter(model="a", last=1))
    await store.insert(Counter(model="b", last=1))
    tampered(path, "UPDATE records SET body = CAST(X'FF7B' AS TEXT), key = CAST(X'FF' AS TEXT) WHERE key = 'b'")
    assert await store.find(Counter) == [good]
    await store.close()


async def test_a_clock_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    """A sentence, not a traceback."""
    path = tmp_path / "records.sqlite"
    store = await SqliteStore.open(path)
    tampered(path, "DELETE FROM clock")
    with pytest.raises(Unavailable, match="clock is damaged"):
        await store.revision()
    await store.close()


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Key digests stand in it: nobody else reads it."""
    store = await SqliteStore.open(tmp_path / "deep" / "records.sqlite")
    assert stat.S_IMODE((tmp_path / "deep" / "records.sqlite").stat().st_mode) == 0o600
    await store.close()


async def test_a_neighbour_that_holds_the_lock_never_blocks_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process writes for long, the write waits in its thread, the loop runs, and then it is a 503."""
    monkeypatch.setattr(sqlite, "BUSY_S", 2.0)
    path = tmp_path / "records.sqlite"
    store = await SqliteStore.open(path)
    neighbour = sqlite3.connect(path, isolation_level=None)
    neighbour.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(store.insert(Counter(model="m", last=1)))
    longest, before = 0.0, time.monotonic()
    while not write.done():
        await asyncio.sleep(0.001)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    with pytest.raises(Unavailable, match="busy"):
        await write
    assert longest < 1.0
    neighbour.execute("ROLLBACK")
    neighbour.close()
    await store.insert(Counter(model="m", last=1))
    await store.close()


async def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """The counter that pollers read and the records change together or not at all."""
    path = tmp_path / "records.sqlite"
    store = await SqliteStore.open(path)
    tampered(path, "CREATE TRIGGER no BEFORE UPDATE ON clock BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(Unavailable):
        await store.insert(Counter(model="m", last=1))
    tampered(path, "DROP TRIGGER no")
    assert await store.get(Counter, "m") is None
    await store.insert(Counter(model="m", last=1))
    await store.close()
