"""The supervisor of one code-bearing model: keeps a child process running, gives the gateway a connection to it.

    launched ──► connected ──► died ──► back-off ──► launched …

A child that dies is started again, at once the first time, then ever later up to child_restart_max_s; how often, and
why, stands in the version's state. While it is away its transport takes no batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import structlog

from core.errors import PenstockError
from core.settings import Settings
from repository.records import READY, UNAVAILABLE, Version
from workers.life import LAST_WORDS_S, Life
from workers.worker import Timed

log = structlog.get_logger(__name__)

Changed = Callable[[Version, str, str], None]
"""`changed(version, state, reason)`: the child went (UNAVAILABLE) or came back (READY)."""

FIRST_DELAY_S = 0.1
STEADY_S = 60.0
"""A child that lived this long starts its back-off anew."""


class Backoff:
    """Delays before each next start: doubling up to `longest`, from the beginning after a long life."""

    def __init__(self, longest: float) -> None:
        self.starts = 0
        self._longest = longest
        self._next = FIRST_DELAY_S

    def after(self, lived: float) -> float:
        """Seconds to wait after a life of `lived` seconds."""
        if lived >= STEADY_S:
            self._next = FIRST_DELAY_S
        delay = min(self._next, self._longest)
        self._next = min(2 * self._next, self._longest)
        self.starts += 1
        return delay


class Child:
    """`version` holds what the child found out once `start` has returned; `max_reply`: bytes of its largest frame."""

    def __init__(
        self,
        version: Version,
        artifact: Path,
        example: bytes | None,
        settings: Settings,
        changed: Changed,
        device: str = "cpu",
    ) -> None:
        self.version = version
        self.samples: list[Timed] = []
        self.max_reply = 2 * settings.max_decoded_bytes
        self._artifact = artifact
        self._example = example
        self._settings = settings
        self._changed = changed
        self._device = device
        self._protocol: Callable[[], asyncio.Protocol] | None = None
        self._process: Life | None = None
        self._link: asyncio.WriteTransport | None = None
        self._task: asyncio.Task[None] | None = None
        self._linking: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now, None while there is none."""
        return self._process.pid if self._process is not None else None

    def __repr__(self) -> str:
        return f"<Child {self.version.key}, {f'process {self.pid}' if self.pid else 'away'}>"

    async def start(self) -> str:
        """Launch it for the first time; returns what the pusher should know.

        Raises InvalidRequest when it refuses the model, ModelFailed when it dies or is too slow.
        """
        note = await self._launch()
        self._task = asyncio.create_task(self._keep())
        return note

    def attach(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Have the connection of this and every later process handled by a protocol of its own."""
        self._protocol = protocol
        self._linking = asyncio.create_task(self._connect())

    def kill(self, cause: str) -> None:
        """End the process that runs now, because of `cause`; another will be started."""
        if self._process is not None:
            log.warning("child killed", model=self.version.key, pid=self.pid, cause=cause)
            self._process.kill(cause)

    def disconnected(self) -> None:
        """Its connection has ended: it is dying, or is made to if it does not within a moment."""
        if self._process is not None:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._process.kill, "it closed its connection")

    async def close(self, patience: float = 2.0) -> None:
        """End it for good: it has `patience` seconds (2 at most) to leave by itself."""
        for task in (self._task, self._linking):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in (self._task, self._linking) if task), return_exceptions=True)
        await self._bury(min(patience, 2.0))

    async def _launch(self) -> str:
        process = Life(self.version, self._settings, self.max_reply, self._device)
        started = await process.launch(self._artifact, self._example)
        self.version = msgspec.structs.replace(self.version, signature=started.signature, max_batch=started.max_batch)
        self.samples = [Timed(rows, seconds) for rows, seconds in started.samples]
        self._process = process
        await self._connect()
        return started.note

    async def _connect(self) -> None:
        life = self._process
        if self._protocol is None or life is None or self._link is not None:
            return
        link, _ = await asyncio.get_running_loop().create_unix_connection(self._protocol, sock=life.hand_over())
        if life is self._process:
            self._link = cast(asyncio.WriteTransport, link)
        else:
            link.close()

    async def _keep(self) -> None:
        """Wait for its death and start it again, for ever."""
        backoff = Backoff(self._settings.child_restart_max_s)
        loop = asyncio.get_running_loop()
        while self._process is not None:
            born = loop.time()
            cause = await asyncio.shield(self._process.exited)
            await self._bury(0.0)
            await self._revive(backoff, cause, loop.time() - born)

    async def _revive(self, backoff: Backoff, cause: str, lived: float) -> None:
        while self._process is None:
            delay = backoff.after(lived)
            log.warning("child died", model=self.version.key, cause=cause, starts=backoff.starts, delay_s=delay)
            self._changed(
                self.version, UNAVAILABLE, f"its process died ({cause}); start {backoff.starts} in {delay:.1f} s"
            )
            await asyncio.sleep(delay)
            try:
                await self._launch()
            except PenstockError as error:
                cause, lived = error.message, 0.0
            except Exception:
                log.exception("child not started", model=self.version.key)
                cause, lived = "it could not be started", 0.0
        self._changed(self.version, READY, f"its process was started again {backoff.starts} times; last: {cause}")

    async def _bury(self, patience: float) -> None:
        process, link = self._process, self._link
        self._process = self._link = None
        if link is not None:
            link.abort()
        if process is not None:
            await process.end("it was stopped", patience)
