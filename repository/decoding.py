"""JSON → records, for every store; what no command would have written is damaged, whoever wrote it.

A damaged record is not there for those who read all of a kind: it routes nothing, runs nothing and lets nobody in,
while the others work. It is named in the log, once, and to whoever asks for it by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

import msgspec
import structlog

from core.errors import InvalidRequest, Unavailable
from core.names import NAME, check_alias, check_model
from core.settings import MAX_BATCH, MAX_QUEUE, MAX_TENSORS, YEAR_S
from repository.access import check_key
from repository.deployments import check_deployment
from repository.manifest import check_range
from repository.records import (
    ALWAYS,
    AUTO,
    FORMATS,
    LOADING,
    NEVER,
    READY,
    UNAVAILABLE,
    UNKNOWN,
    UNLOADING,
    Alias,
    ApiKey,
    Counter,
    Deployment,
    Record,
    Version,
    VersionState,
)
from repository.signature import check_batched, check_signature
from repository.store import R

log = structlog.get_logger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
LAST = 10**18 - 1
"""The highest version number that `core.names.VERSION` can name."""
KNOWN = 4096
"""Records that are not decoded and checked anew while they are the same."""
MOST = (1 << 63) - 1
LAST_TIME = 253_402_300_799
"""Unix seconds at the end of the year 9999: beyond it no calendar tells a time."""
WRONG = (InvalidRequest, msgspec.MsgspecError, TypeError, ValueError, RecursionError)


class Reader:
    """A store's own: it knows which records it has named in the log already."""

    def __init__(self) -> None:
        self._named: set[tuple[str, str]] = set()

    def one(self, kind: type[R], key: object, body: object) -> R:
        """The record that has that key in the store. Raises Unavailable, which names it, where it is damaged."""
        try:
            record = cast(R, _decoded(kind, key, body))
        except WRONG as error:
            name = kind.kind, str(key)[:200]
            if name not in self._named:
                log.error("record_damaged", kind=name[0], record=name[1], error=str(error)[:300])
            self._named.add(name)
            raise Unavailable(f"the {name[0]} {name[1]!r} in the repository is damaged") from error
        if self._named:
            self._named.discard((kind.kind, str(key)[:200]))
        return record

    def all(self, kind: type[R], rows: Iterable[tuple[object, object]]) -> list[R]:
        """Of (key, body) those that are not damaged, in their order."""
        found = []
        for key, body in rows:
            try:
                found.append(self.one(kind, key, body))
            except Unavailable:
                continue
        return found


def counted(said: object) -> int:
    """The revision that a store's clock says, which other hands may have made a float. Raises Unavailable."""
    whole = int(said) if isinstance(said, float) and said.is_integer() else said
    if not isinstance(whole, int) or isinstance(whole, bool) or not 0 <= whole <= MOST:
        raise Unavailable(f"the repository's clock is damaged: its revision is {str(said)[:32]!r}")
    return whole


def check_record(record: Record) -> None:
    """Raise InvalidRequest that names the field in which a record cannot be so."""
    CHECKS.get(type(record), _unchecked)(record)


@lru_cache(KNOWN)
def _decoded(kind: type[Record], key: object, body: Any) -> Record:
    """Of all the records that are read after each write all but one are the same as before."""
    record = msgspec.json.decode(body, type=kind)
    if record.key != key:
        raise InvalidRequest(f"key: it says that it is {record.key[:128]!r}")
    check_record(record)
    return record


def _check_version(version: Version) -> None:
    check_model(version.model)
    check_range("version", version.version, 1, LAST)
    _check_word("format", version.format, FORMATS)
    _check_digest("digest", version.digest)
    if version.example:
        _check_digest("example", version.example)
    check_range("size", version.size, 0, MOST)
    check_range("max_batch", version.max_batch, -1, MAX_BATCH)
    check_range("default_deadline_ms", version.default_deadline_ms, 1, YEAR_S * 1000)
    check_range("queue_bound", version.queue_bound, 1, MAX_QUEUE)
    for rows in version.warmup:
        check_range("warmup", rows, 1, MAX_BATCH)
    check_signature(version.signature, MAX_TENSORS)
    check_batched(version.signature, version.max_batch)
    check_range("attempt", version.attempt, 1, LAST)
    check_range("created", version.created, 0, LAST_TIME)
    _check_word("wanted", version.wanted, (AUTO, ALWAYS, NEVER))


def _check_state(state: VersionState) -> None:
    check_model(state.model)
    check_range("version", state.version, 1, LAST)
    check_range("attempt", state.attempt, 1, LAST)
    check_range("updated", state.updated, 0, LAST_TIME)
    _check_word("state", state.state, (READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN))


def _check_alias(alias: Alias) -> None:
    check_model(alias.model)
    check_alias(alias.alias)
    check_range("version", alias.version, 1, LAST)


def _check_counter(counter: Counter) -> None:
    check_model(counter.model)
    check_range("last", counter.last, 0, LAST - 1)


def _check_deployment(deployment: Deployment) -> None:
    check_model(deployment.model)
    check_deployment(deployment)


def _check_key(key: ApiKey) -> None:
    if not NAME.match(key.key_id):
        raise InvalidRequest(f"key_id: {key.key_id[:128]!r} is none")
    check_key(key.name, key.owner, key.role, key.patterns, key.grants, None)
    _check_digest("digest", key.digest)
    check_range("created", key.created, 0, LAST_TIME)
    check_range("expires", key.expires, 0, LAST_TIME)


def _check_word(field: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        raise InvalidRequest(f"{field}: {word[:64]!r} is none of {', '.join(known)}")


def _check_digest(field: str, digest: str) -> None:
    if not DIGEST.match(digest):
        raise InvalidRequest(f"{field}: {digest[:64]!r} is no SHA-256 in hex")


def _unchecked(record: Any) -> None: ...


CHECKS: dict[type[Record], Callable[[Any], None]] = {
    Version: _check_version,
    VersionState: _check_state,
    Alias: _check_alias,
    Counter: _check_counter,
    Deployment: _check_deployment,
    ApiKey: _check_key,
}
