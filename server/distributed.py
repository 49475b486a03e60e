"""The production shape on one machine: real servers, control plane, workers on a local Ray, two gateways.

    servers (RabbitMQ, MongoDB's protocol, a Ray head) ─► control, workers ─► first key, samples ─► gateways
            (Jaeger and Prometheus, where they can be had)

Each part is the process that would run alone elsewhere, told where the others are by its environment. They run in
sessions of their own, so that a Ctrl-C reaches only this process, which stops them in the reverse order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import structlog

from core import settings
from core.errors import Unavailable
from core.identity import Verifier
from repository.commands import Commands
from repository.opening import open_repository
from repository.watch import Watch
from server import watching
from server.composition import Composition
from server.display import Display
from server.first_key import docs_of, first_key, key_and_try, tell_clients
from server.home import Home
from server.listen import bind
from server.registering import register
from server.servers.choice import may_install
from server.servers.family import family
from server.servers.fleet import Fleet
from server.siblings import Siblings
from server.stopping import LIFELINE

log = structlog.get_logger()

NEEDED = "rabbitmq,mongo,ray"
COMMAND = Path(sys.executable).parent / "penstock"
READY_WITHIN_S = 120.0
STOPPED_WITHIN_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
LOOK_S = 0.1


class Part:
    """One server process of ours: `penstock WORD`, in a session of its own, started again when it ends; it stops when
    this process dies."""

    def __init__(self, word: str) -> None:
        self.word = word
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ask it to stop, wait, kill it if it does not."""
        keeper, process = self._keeper, self._process
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOPPED_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            begun = time.monotonic()
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    self._process = process = await asyncio.create_subprocess_exec(
                        COMMAND,
                        self.word,
                        stdin=asyncio.subprocess.DEVNULL,
                        env=os.environ | {LIFELINE: str(theirs.fileno())},
                        pass_fds=(theirs.fileno(),),
                        start_new_session=True,
                    )
                code = await process.wait()
            log.warning("ended, and is started again", part=self.word, code=code)
            pause = FIRST_PAUSE_S if time.monotonic() - begun > LONGEST_PAUSE_S else min(2 * pause, LONGEST_PAUSE_S)
            await asyncio.sleep(pause)


class Distributed(Composition):
    """`bring_up` raises PenstockError with one sentence where something cannot be had."""

    async def bring_up(self, display: Display) -> None:
        self._display = display
        await self.start()

    def greet(self, display: Display) -> None:
        count = self.settings.gateways
        display.say(f"Penstock is ready: {count} gateways, control plane, workers on Ray, RabbitMQ, MongoDB.")
        display.say(f"  REST     {self.url}")
        display.say(f"  gRPC     {self.grpc}")
        display.say(f"  control  {self.control}{docs_of(self.control, self.settings)}")
        for line in watching.greeting(self.watched):
            display.say(line)
        key_and_try(display, self.home, self.api_key, self.told, self.settings.samples)

    async def _start(self) -> None:
        display = self._display
        self.home = Home(self.settings.home)
        self._stack.callback(self.home.release)
        self.siblings = Siblings(self.settings, self.settings.gateways)
        self._stack.push_async_callback(self.siblings.stop)
        self.siblings.bind()
        os.environ["PENSTOCK_CONTROL_PORT"] = str(_port(self.settings))
        await self._servers()
        self.settings = chosen = settings.load()
        for part in (Part("control"), Part("workers")):
            display.step(f"starting {part.word}")
            await part.start()
            self._stack.push_async_callback(part.stop)
        store, artifacts = await open_repository(chosen)
        self._stack.push_async_callback(store.close)
        self.watch = Watch(store, chosen.poll_interval_s)
        self._background(self.watch.run())
        self.commands = Commands(store, artifacts, chosen, self.watch)
        self.control = f"http://{settings.authority(settings.reached(chosen.host), chosen.control_port)}"
        await self._until_ready(self.control)
        self.api_key = await self._key()
        if chosen.samples:
            await register(self.home.folder, self.watch, self.commands, display.step, chosen.load_timeout_s)
        self.url, self.grpc = self.siblings.url, self.siblings.grpc
        self.told = tell_clients(
            self.home, url=self.url, grpc=self.grpc, control=self.control, api_key=self.api_key, **self.watched
        )
        display.step("starting gateways")
        self._stack.push_async_callback(self.siblings.stop)  # before all that they need
        await self.siblings.start()
        await self._until_ready(self.url)

    async def _servers(self) -> None:
        """Have the servers, and tell every process that is started from here where they are. `watched`: name → URL."""
        fleet = Fleet(self.settings.home, family(), os.environ, may_install=may_install(os.getuid(), os.environ))
        watchers = fleet.chosen(watching.chosen(os.environ))
        chosen = [*fleet.chosen(NEEDED), *watchers]
        ours = [server for server, status in zip(chosen, fleet.status(chosen), strict=True) if not status.url]
        self._stack.push_async_callback(asyncio.to_thread, fleet.down, ours, self._display.step)
        failed = await asyncio.to_thread(fleet.up, chosen, self._display.step)
        for line in watching.done_without(failed):
            self._display.say(line)
        if failed:
            raise Unavailable("; ".join(f"{name}: {why}" for name, why in failed.items()))
        os.environ.update(fleet.exports(chosen))
        self.watched = {status.name: status.url for status in fleet.status(watchers) if status.url}

    async def _until_ready(self, url: str) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not await asyncio.to_thread(_answers, f"{url}/v2/health/ready"):
            if time.monotonic() > deadline:
                raise Unavailable(f"{url} did not become ready")
            await asyncio.sleep(LOOK_S)

    async def _key(self) -> str:
        await self.watch.refresh()
        verifier = Verifier()
        verifier.replace(self.watch.catalog.credentials())
        return await first_key(self.home, verifier, self.commands)


def _port(chosen: settings.Settings) -> int:
    """Of the control plane: as it is set, or a free one."""
    with bind(chosen.host, chosen.control_port, "PENSTOCK_CONTROL_PORT") as found:
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:  # noqa: S310 - a URL of ours
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
