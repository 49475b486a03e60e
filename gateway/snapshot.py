"""The last known catalog on disk: a gateway that starts while the repository is away serves from it.

It holds routes, key digests and grants, no secret. Its age counts from the last time that the repository confirmed
it; beyond `max_age_s` it is not believed. Until the host boots again the clock that runs from the boot tells it, so
that setting the wall clock changes nothing; after a boot there is only the wall clock. A snapshot of the future was
made before that was set back, or by the other clock of a container: it is new, unless it is further off than it may be
old.
"""

from __future__ import annotations

import asyncio
import math
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from core.beats import boot_id
from core.errors import InvalidRequest
from repository.catalog import Catalog, catalog
from repository.decoding import check_record
from repository.records import Alias, ApiKey, Deployment, Version, VersionState

log = structlog.get_logger(__name__)

CONFIRM_S = 30.0
"""A catalog that stays the same is confirmed this often."""


class _Kept(msgspec.Struct):
    confirmed: float
    """Unix seconds."""
    revision: int
    versions: list[Version]
    states: list[VersionState]
    aliases: list[Alias]
    keys: list[ApiKey]
    deployments: list[Deployment]
    boot: str = ""
    up: float = 0.0
    """Seconds from that boot to `confirmed`."""


def _content(file: Path) -> bytes:
    """Of a regular file: what else may stand there never ends, or is waited for."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("it is no file")
    return file.read_bytes()


def _believable(content: bytes) -> _Kept:
    """Raises ValueError or InvalidRequest for what no gateway has kept."""
    kept = msgspec.msgpack.decode(content, type=_Kept)
    if kept.revision < 0 or not (math.isfinite(kept.confirmed) and math.isfinite(kept.up)):
        raise ValueError("its revision or its time is none")
    for record in (*kept.versions, *kept.states, *kept.aliases, *kept.keys, *kept.deployments):
        check_record(record)
    return kept


def since_boot() -> float:
    """Seconds, those included in which the host was asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Snapshot:
    """One file, replaced whole. `clock`: Unix seconds; `up`: seconds since the boot that `boot` names."""

    def __init__(
        self,
        file: Path,
        max_age_s: float,
        clock: Callable[[], float] = time.time,
        up: Callable[[], float] = since_boot,
        boot: str | None = None,
    ) -> None:
        self._file = file
        self._max_age_s = max_age_s
        self._clock = clock
        self._up = up
        self._boot = boot_id() if boot is None else boot
        self._written: tuple[int, float] | None = None
        """Revision of the last one, and seconds from the boot to it."""

    def load(self) -> Catalog | None:
        """What was kept; None where there is nothing, or nothing that can be believed."""
        try:
            kept = _believable(_content(self._file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, InvalidRequest, RecursionError) as error:
            log.warning("snapshot not readable", error=str(error)[:200])
            return None
        age = self._age(kept)
        if abs(age) > self._max_age_s:
            log.warning("snapshot too old" if age > 0 else "snapshot of the future", age_s=round(age))
            return None
        return catalog(kept.revision, kept.versions, kept.states, kept.aliases, kept.keys, kept.deployments)

    def due(self, known: Catalog) -> bool:
        """Whether the file says something else, or was confirmed long ago."""
        if self._written is None or self._written[0] != known.revision:
            return True
        return self._up() - self._written[1] > CONFIRM_S

    def _age(self, kept: _Kept) -> float:
        """Seconds; negative where it seems to be of the future."""
        return self._up() - kept.up if kept.boot == self._boot else self._clock() - kept.confirmed

    async def keep(self, known: Catalog) -> None:
        """Write what the repository has just confirmed. A disk that takes nothing is only logged."""
        up = self._up()
        kept = _Kept(
            self._clock(),
            known.revision,
            known.all_versions(),
            list(known.states.values()),
            known.all_aliases(),
            list(known.keys.values()),
            list(known.deployments.values()),
            self._boot,
            up,
        )
        try:
            await asyncio.to_thread(self._write, msgspec.msgpack.encode(kept))
        except OSError as error:
            log.warning("snapshot not written", error=error.strerror)
            return
        self._written = (known.revision, up)

    def _write(self, data: bytes) -> None:
        """Several gateways of one host may write at once: each has a name of its own until it is whole."""
        partial = self._file.with_suffix(f".{os.getpid()}.partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._file)
