"""Gateway processes of one host on one inherited HTTP socket; this process holds the sockets and replaces who dies.

HTTP: every process accepts from the one listening socket, so what waits in its backlog is lost with none of them.
gRPC: its Python library takes no socket, so each process listens on the port by SO_REUSEPORT; a bound socket that
does not listen holds the port for them.

Each process has one end of a socket pair: it sends a byte when it serves, and one each second from then on; who is
silent for long hangs, and so does what its port still accepts: it is killed and replaced. When it is told to stop by a
signal it leaves the socket to the others at once. When the pair is closed, as it is when this process stops or dies,
all stop, and it serves whoever comes for a while yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

import structlog
import typer

from core.errors import Unavailable
from core.settings import Settings, authority, reached
from gateway.grpc_server import PORT, check_port
from server.listen import BACKLOG, bind
from server.stopping import TICK_S, stop_signal

log = structlog.get_logger()

SERVING_WITHIN_S = 60.0
SHORT_LIFE_S = 5.0
SILENT_TICKS = 15
"""Counted, not timed: for who counts may have been stopped itself."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


class Siblings:
    """`count` processes from `start` to `stop`. `url` and `grpc` are known from `bind` on."""

    url: str
    grpc: str

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._count = count
        self._stopping = asyncio.Event()
        self._living: dict[int, asyncio.subprocess.Process] = {}
        self._lifelines: set[socket.socket] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._sockets = contextlib.ExitStack()

    def bind(self) -> None:
        """Take both ports. Raises Unavailable where one is taken."""
        host = self._settings.host
        self._listener = self._sockets.enter_context(bind(host, self._settings.http_port))
        held = self._sockets.enter_context(hold(host, self._settings.grpc_port))
        self._listener.listen(BACKLOG)
        self._grpc_port = held.getsockname()[1]
        self.url = f"http://{authority(reached(host), self._listener.getsockname()[1])}"
        self.grpc = authority(reached(host), self._grpc_port)

    async def start(self) -> None:
        """Start all and wait until each serves. Raises Unavailable where one does not; it has said why itself."""
        self._environment = os.environ | {"PENSTOCK_GRPC_PORT": str(self._grpc_port)}
        self._keepers = [asyncio.create_task(self._keep(slot)) for slot in range(self._count)]
        deadline = time.monotonic() + SERVING_WITHIN_S
        while len(self._living) < self._count:
            if any(keeper.done() for keeper in self._keepers) or time.monotonic() > deadline:
                raise Unavailable("a gateway process does not start")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Let all drain; kill who does not end in the time that a stop may take; give the ports back."""
        self._stopping.set()
        for lifeline in self._lifelines:
            lifeline.shutdown(socket.SHUT_WR)
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=self._settings.stop_timeout_s)
        for process in list(self._living.values()):
            log.warning("gateway process cut off", pid=process.pid)
            _tell(process, signal.SIGKILL)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._sockets.close()

    async def _keep(self, slot: int) -> None:
        """One process after the other; returns when the first one never served, or all are to stop."""
        pause, first = FIRST_PAUSE_S, True
        while not self._stopping.is_set():
            begun = time.monotonic()
            served = await self._one(slot)
            if self._stopping.is_set() or (first and not served):
                return
            first = False
            if time.monotonic() - begun > SHORT_LIFE_S:
                pause = FIRST_PAUSE_S
            else:
                await self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _one(self, slot: int) -> bool:
        """Start a process and wait for its end; whether it came to serve."""
        shared = self._listener.fileno()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, self._followed(ours):
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "server.gateway_process", str(shared), str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(shared, theirs.fileno()),
                    env=self._environment,
                    start_new_session=True,
                )
            ending = asyncio.create_task(process.wait())
            served = await _serves(ours, ending)
            if served:
                self._living[slot] = process
                watching = asyncio.create_task(_watch(ours, process))
                ending.add_done_callback(lambda _: watching.cancel())
            code = await ending
            self._living.pop(slot, None)
        if not self._stopping.is_set():
            log.warning("gateway process ended", pid=process.pid, code=code)
        return served

    @contextlib.contextmanager
    def _followed(self, lifeline: socket.socket) -> Iterator[None]:
        """Closed for writing when all are to stop: the process drains, knowing that it is not alone in that."""
        self._lifelines.add(lifeline)
        try:
            yield
        finally:
            self._lifelines.discard(lifeline)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def hold(host: str, port: int) -> socket.socket:
    """A socket bound to the port with SO_REUSEPORT that does not listen. Raises Unavailable where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    check_port(host, port)
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise Unavailable(f"gRPC cannot listen on {authority(host, port)}: {error.strerror}; {PORT}") from None
    return held


async def _serves(ours: socket.socket, ending: asyncio.Task[int]) -> bool:
    """Whether the process says that it serves before it ends."""
    said = asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 1))
    await asyncio.wait([said, ending], return_when=asyncio.FIRST_COMPLETED)
    if said.done():
        return not said.cancelled() and said.exception() is None and bool(said.result())
    said.cancel()
    return False


async def _watch(ours: socket.socket, process: asyncio.subprocess.Process) -> None:
    """Until it hangs."""
    silent = 0
    while silent < SILENT_TICKS:
        await asyncio.sleep(TICK_S)
        silent = 0 if _heard(ours) else silent + 1
    log.warning("gateway process hangs: killed", pid=process.pid, silent_s=SILENT_TICKS * TICK_S)
    _tell(process, signal.SIGKILL)


def _heard(ours: socket.socket) -> bool:
    """Whether there is something of it; its last word, that it has closed its end, is something too."""
    try:
        ours.recv(4096)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _tell(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def run(settings: Settings, count: int) -> None:
    """Serve until SIGINT or SIGTERM. Raises Unavailable where it cannot start."""
    stop, siblings = stop_signal(), Siblings(settings, count)
    try:
        siblings.bind()
        starting, stopping = asyncio.create_task(siblings.start()), asyncio.create_task(stop.wait())
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            typer.echo("Penstock's gateway is ready.")
            typer.echo(f"  REST     {siblings.url}")
            typer.echo(f"  gRPC     {siblings.grpc}")
            await stopping
        starting.cancel()
    finally:
        await siblings.stop()
