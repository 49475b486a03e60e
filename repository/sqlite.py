"""The embedded store: records as JSON in one SQLite table, write-ahead logged, shared safely by several processes.

One connection, used by one thread of its own, so the event loop never waits for the disk or for another process.
A write is one transaction: compare the revision, change the row, raise the counter that `revision()` reads.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import structlog

from core.errors import Conflict, PenstockError, Unavailable
from repository.decoding import Reader, counted
from repository.records import Record
from repository.store import R

T = TypeVar("T")
log = structlog.get_logger(__name__)

APPLICATION = 0x50535452
"""SQLite's `application_id`, by which a database of ours is told from a foreign one."""
FORMAT = 1
"""SQLite's `user_version`: of the tables below."""
BUSY_S = 5.0
"""Seconds to wait for another process's write."""

TABLES = (
    """CREATE TABLE records (
        kind TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, revision INTEGER NOT NULL,
        seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID""",
    "CREATE INDEX records_in_order ON records (kind, seq)",
    "CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL)",
    "INSERT INTO clock VALUES (1, 0)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
)


class SqliteStore:
    """`Store` in the file `path`. Make one by `await SqliteStore.open(path)`."""

    def __init__(self, thread: ThreadPoolExecutor, database: sqlite3.Connection, name: str) -> None:
        self._thread = thread
        self._database = database
        self._name = name
        self._reader = Reader()

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Open or create the database. Raises Unavailable when the file cannot be used or is not of Penstock."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            database = await _in(thread, lambda: _opened(path), path.name)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(thread, database, path.name)

    async def get(self, kind: type[R], key: str) -> R | None:
        return await self._run(lambda: self._get(kind, key))

    async def find(self, kind: type[R], model: str | None = None) -> list[R]:
        return await self._run(lambda: self._reader.all(kind, self._select("key, body", "ORDER BY seq", kind, model)))

    async def count(self, kind: type[R], model: str | None = None) -> int:
        return await self._run(lambda: cast(int, self._select("count(*)", "", kind, model)[0][0]))

    async def insert(self, record: R) -> R:
        return await self._run(lambda: self._written(self._insert, record))

    async def replace(self, record: R) -> R:
        return await self._run(lambda: self._written(self._replace, record))

    async def delete(self, record: R) -> None:
        await self._run(lambda: self._written(self._delete, record))

    async def revision(self) -> int:
        return await self._run(self._revision)

    async def close(self) -> None:
        """Finish what is under way and let go of the file. Closing twice is fine."""
        try:
            await _in(self._thread, self._database.close, self._name)
        except Unavailable:
            return
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await _in(self._thread, work, self._name)

    # From here on: in the store's own thread.

    def _get(self, kind: type[R], key: str) -> R | None:
        statement = "SELECT body FROM records WHERE kind = ? AND key = ?"
        row = self._database.execute(statement, (kind.kind, key)).fetchone()
        return None if row is None else self._reader.one(kind, key, row[0])

    def _select(self, what: str, order: str, kind: type[R], model: str | None) -> list[tuple[Any, ...]]:
        where, values = ("kind = ?", [kind.kind]) if model is None else ("kind = ? AND model = ?", [kind.kind, model])
        statement = f"SELECT {what} FROM records WHERE {where} {order}"  # noqa: S608 - our own text
        return self._database.execute(statement, values).fetchall()

    def _revision(self) -> int:
        row = self._database.execute("SELECT revision FROM clock").fetchone()
        return counted(row and row[0])

    def _written(self, write: Callable[[R], R], record: R) -> R:
        """Run one write in a transaction that also raises the counter; nothing remains of one that fails."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            stored = write(record)
            self._database.execute("UPDATE clock SET revision = revision + ?", (record.counted,))
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return stored

    def _insert(self, record: R) -> R:
        stored = msgspec.structs.replace(record, revision=1)
        model = getattr(record, "model", "")
        row = (record.kind, record.key, model, 1, self._revision() + 1, msgspec.json.encode(stored))
        try:
            self._database.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise Conflict(f"there is a {record.kind} {record.key!r} already") from None
        return stored

    def _replace(self, record: R) -> R:
        stored = msgspec.structs.replace(record, revision=record.revision + 1)
        self._change(
            record,
            "UPDATE records SET revision = ?, body = ? WHERE kind = ? AND key = ? AND revision = ?",
            (stored.revision, msgspec.json.encode(stored)),
        )
        return stored

    def _delete(self, record: R) -> R:
        self._change(record, "DELETE FROM records WHERE kind = ? AND key = ? AND revision = ?", ())
        return record

    def _change(self, record: Record, statement: str, values: tuple[int | bytes, ...]) -> None:
        changed = self._database.execute(statement, (*values, record.kind, record.key, record.revision)).rowcount
        if changed != 1:
            raise Conflict(f"the {record.kind} {record.key!r} was changed or deleted by somebody else meanwhile")


async def _in(thread: ThreadPoolExecutor, work: Callable[[], T], name: str) -> T:
    """Run `work` in the store's thread; what SQLite raises becomes Unavailable, the details stand in the log."""
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    except PenstockError:
        raise
    except (sqlite3.Error, OSError, RuntimeError) as error:
        log.error("repository_failed", database=name, error=repr(error))
        raise Unavailable(_explanation(error)) from error


def _explanation(error: Exception) -> str:
    text = str(error)
    if "full" in text:
        return "the repository's disk is full"
    if "locked" in text or "busy" in text:
        return "the repository is busy with other writers"
    if "malformed" in text or "not a database" in text:
        return "the repository's database is damaged or not a database"
    return "the repository's database cannot be used"


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=True)
    database.text_factory = _text
    try:
        _prepare(database)
    except BaseException:
        database.close()
        raise
    path.chmod(0o600)
    return database


def _text(stored: bytes) -> str:
    """What is no UTF-8 is that of one record: it does not end the reading of the others."""
    return stored.decode(errors="replace")


def _prepare(database: sqlite3.Connection) -> None:
    _check_ours(database)
    _write_ahead(database)
    database.execute("PRAGMA synchronous = FULL")
    database.execute("BEGIN IMMEDIATE")
    if _check_ours(database):
        for statement in TABLES:
            database.execute(statement)
    database.execute("COMMIT")


def _check_ours(database: sqlite3.Connection) -> bool:
    """Whether the tables are still to be made. Raises Unavailable for a database of others or of a later version."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not application and not tables:
        return True
    if application != APPLICATION:
        raise Unavailable("the repository's file is a database of something else")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        raise Unavailable(f"the repository has format {version}, this server knows format {FORMAT}")
    return False


def _write_ahead(database: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; SQLite does not wait here by itself while another process does the same."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
