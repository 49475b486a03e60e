"""The contract that every repository meets: SQLite and files when embedded, MongoDB in production.

Deliberately small: one-document reads and compare-and-set writes on a revision. No transactions, no change
streams, no queries beyond equality of kind and model, so that one suite (`tests/repository/`) holds both.
Records are immutable structs from `repository/records.py`. All methods raise Unavailable when the store is away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from repository.records import Record

R = TypeVar("R", bound=Record)

Used = Callable[[], Awaitable[bool]]
"""Whether a record refers to an artifact: asked while it is out of sight, before it is gone for good."""


class Store(Protocol):
    """Records by kind and key."""

    async def get(self, kind: type[R], key: str) -> R | None:
        """The record, or None. Raises Unavailable, which names it, where it is damaged."""

    async def find(self, kind: type[R], model: str | None = None) -> list[R]:
        """All records of a kind, in the order of their keys' insertion; of one model where it is named.

        Damaged ones (`repository/decoding.py`) are left out.
        """

    async def count(self, kind: type[R], model: str | None = None) -> int:
        """How many records `find` would give if none were damaged: for who concludes something from their absence."""

    async def insert(self, record: R) -> R:
        """Store a new record with revision 1. Raises Conflict when its key exists."""

    async def replace(self, record: R) -> R:
        """Replace the record of that key if it still has `record.revision`; returns it with the next revision.

        Raises Conflict when it changed or is gone.
        """

    async def delete(self, record: R) -> None:
        """Delete the record of that key if it still has `record.revision`. Raises Conflict otherwise."""

    async def revision(self) -> int:
        """A number that grows with every write of a counted record, by whichever process. Cheap: it is polled.

        Whoever reads it sees all the writes that it counts. A write whose process died is counted within seconds.
        """

    async def close(self) -> None: ...


class Artifacts(Protocol):
    """Files by the SHA-256 of their content, in hex."""

    async def put(self, chunks: AsyncIterator[bytes], limit: int) -> tuple[str, int]:
        """Store a stream, never whole in memory; returns its digest and size in bytes.

        Atomic: a crash leaves no partial artifact behind that could be read. Raises TooLarge beyond `limit` bytes.
        """

    async def fetch(self, digest: str) -> Path:
        """A local, read-only file of the artifact, its digest just verified.

        Raises NotFound when it is missing, InvalidRequest when its content does not match the digest.
        """

    async def delete(self, digest: str, used: Used | None = None) -> None:
        """Forget the artifact, unless `used`, asked once the artifact is out of sight, says True. Missing is fine."""

    async def digests(self) -> list[str]:
        """All stored digests."""

    async def sweep(self) -> int:
        """Remove what crashed writers left behind, and nothing of living ones; returns how many pieces."""
