"""Servers brought up, taken down and looked at together, all in one folder; one caller at a time.

up      for each:  given by the environment? ── yes ─► nothing to do
                   answers?                  ── yes ─► nothing to do
                   what is left of it is ended, it is had (built, installed, pulled) and launched
        then each is waited for: they start side by side
down    each is asked to stop, and killed where it does not
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from core.errors import InvalidRequest, PenstockError, Unavailable
from server.servers import engine, processes
from server.servers.base import Say, Server
from server.servers.choice import Source, source
from server.servers.places import Place, Running, locked

STOPPED, RUNNING, SILENT, CRASHED, GIVEN = "stopped", "running", "not answering", "crashed", "given"


class Status(NamedTuple):
    """`url` as it is, password included; `pid` 0 where none is known."""

    name: str
    state: str
    source: str
    url: str
    pid: int
    version: str
    exports: Mapping[str, str]


class Fleet:
    """`home`: PENSTOCK_HOME. `environment`: where URLs are looked up. `containers`: whether an engine may be used."""

    def __init__(
        self,
        home: Path,
        servers: Sequence[Server],
        environment: Mapping[str, str],
        *,
        may_install: bool,
        containers: bool = True,
    ) -> None:
        self.folder = home.absolute() / "services"
        self.servers = servers
        self._environment = environment
        self._may_install = may_install
        self._containers = containers

    def chosen(self, only: str = "") -> list[Server]:
        """Those that `only` names, separated by commas; all where it is empty. Raises InvalidRequest."""
        names = [name.strip() for name in only.split(",") if name.strip()]
        known = {server.name: server for server in self.servers}
        if unknown := [name for name in names if name not in known]:
            raise InvalidRequest(f"there is no server {unknown[0]!r}: choose from {', '.join(known)}")
        return [known[name] for name in dict.fromkeys(names)] if names else list(self.servers)

    def place(self, server: Server) -> Place:
        return Place(self.folder, server.name)

    def up(self, servers: Sequence[Server], say: Say) -> dict[str, str]:
        """Start those that do not run yet and wait until each answers. Returns name → why it could not be had."""
        failed: dict[str, str] = {}
        with locked(self.folder / "lock"):
            launched = []
            for server in servers:
                with _noting(failed, server):
                    if self._launch(server, say):
                        launched.append(server)
            for server in launched:
                with _noting(failed, server):
                    self._settle(server, say)
        return failed

    def down(self, servers: Sequence[Server], say: Say) -> list[str]:
        """Stop all that was started here. Returns what had to be killed."""
        killed: list[str] = []
        if not self.folder.exists():
            return killed
        with locked(self.folder / "lock"):
            for server in reversed(servers):
                killed += self._end(server, say)
        return killed

    def status(self, servers: Sequence[Server]) -> list[Status]:
        return [self._status(server) for server in servers]

    def exports(self, servers: Sequence[Server]) -> dict[str, str]:
        """Variables by which clients find those that run."""
        found: dict[str, str] = {}
        for server, status in zip(servers, self.status(servers), strict=True):
            if status.url:
                found |= {server.variable: status.url, **status.exports}
        return found

    @cached_property
    def _engine(self) -> bool:
        return self._containers and engine.answers()

    def _given(self, server: Server) -> str:
        return self._environment.get(server.variable, "")

    def _launch(self, server: Server, say: Say) -> bool:
        """Whether there is something to wait for."""
        if self._given(server) or self._status(server).state == RUNNING:
            return False
        place = self.place(server)
        place.make()
        self._end(server, say)
        if source("", self._engine, server.image_name) is Source.CONTAINER:
            say(f"starting {server.title} ({server.image_name})")
            place.started(engine.start(server.image_name, server.container(place), place))
        else:
            server.obtain(say, self._may_install)
            say(f"starting {server.title} {server.version()}")
            place.started(_spawned(server, place))
        return True

    def _settle(self, server: Server, say: Say) -> None:
        """Wait for it; start it again where it gave up and is known to do so. Raises Unavailable."""
        for _ in range(server.attempts - 1):
            try:
                return self._wait(server, say)
            except Unavailable:
                self._launch(server, say)
        self._wait(server, say)

    def _wait(self, server: Server, say: Say) -> None:
        """Until it answers. Raises Unavailable when it ends instead, or is too slow: then it is stopped."""
        say(f"waiting for {server.title}")
        place = self.place(server)
        running = place.running
        if running is None:
            raise Unavailable(f"{server.title} was not started")

        def settled() -> bool:
            return not _pid(place, running) or server.answers(running.url, place)

        in_time = processes.wait_until(settled, server.start_within_s)
        if in_time and _pid(place, running):
            return
        why = f"was not ready within {server.start_within_s:.0f} s" if not in_time else "ended at its start"
        words = engine.last_words(running.container) if running.container else place.last_words()
        self._end(server, say)
        raise Unavailable(f"{server.title} {why}; its log, {place.log}, ends with:\n{words}")

    def _end(self, server: Server, say: Say) -> list[str]:
        place = self.place(server)
        running = place.running
        if running is None:
            return processes.stop(None, place.mark, 0.0)
        say(f"stopping {server.title}")
        killed = engine.stop(running.container) if running.container else server.stop(place, running)
        place.stopped()
        return killed

    def _status(self, server: Server) -> Status:
        if given := self._given(server):
            return Status(server.name, GIVEN, Source.ENVIRONMENT, given, 0, "", {})
        place = self.place(server)
        running = place.running
        if running is None:
            return Status(server.name, STOPPED, "", "", 0, "", {})
        started_as = Source.CONTAINER if running.container else Source.NATIVE
        pid = _pid(place, running)
        if not pid:
            return Status(server.name, CRASHED, started_as, "", 0, running.version, {})
        state = RUNNING if server.answers(running.url, place) else SILENT
        return Status(server.name, state, started_as, running.url, pid, running.version, running.exports)


def _spawned(server: Server, place: Place) -> Running:
    launch = server.launch(place)
    birth = processes.spawn(launch.argv, launch.environment, place.mark, place.folder, place.log)
    return Running(url=launch.url, version=server.version(), birth=birth, exports=dict(launch.exports))


def _pid(place: Place, running: Running) -> int:
    """Of the process that leads a started server; 0 where it has ended."""
    if running.container:
        return engine.pid(running.container)
    return running.birth.pid if running.birth is not None and processes.alive(running.birth) else 0


@contextmanager
def _noting(failed: dict[str, str], server: Server) -> Iterator[None]:
    try:
        yield
    except PenstockError as error:
        failed[server.name] = error.message


def shell_lines(exports: Mapping[str, str]) -> str:
    """What a shell evaluates to have these variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())
