"""One life of a child process: started, spoken to, watched, killed. `child.py` gives a model as many as it needs.

The child sees nothing of the server: a cleared environment, no descriptor but its end of a socket pair, a session
and a private folder of its own, as root a uid of its own. What it prints goes into the log, a bounded amount of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import structlog

from core.errors import InvalidRequest, ModelFailed
from core.settings import Settings
from repository.records import Version
from workers.folder import Folder
from workers.memory import resident
from workers.printed import Printed
from workers.starting import MAX_ANSWER, Refused, Start, Started, decode_answer, encode

log = structlog.get_logger(__name__)

FIRST_UID, UIDS = 60_000, 5_000
"""Uids that children take turns in, where the server runs as root: no person and no service has them."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
_turn = itertools.count(os.getpid())
MEMORY_INTERVAL_S = 0.5
LAST_WORDS_S = 0.5
"""What is waited for after a death: the rest of its output, its exit code."""


class Life:
    """`connection` is the server's end of its socket; `exited` is done, with the reason, when it is gone."""

    def __init__(self, version: Version, settings: Settings, max_reply: int, device: str = "cpu") -> None:
        self.version = version
        self.pid = 0
        self.exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._settings = settings
        self._max_reply = max_reply
        self._device = device
        self._uid = FIRST_UID + next(_turn) % UIDS if os.geteuid() == 0 else 0
        self._cause = ""
        self._watch: asyncio.Task[None] | None = None
        self._handed_over = False
        self._folder = Folder(self._uid)
        self.connection, self._other = socket.socketpair()
        self.connection.setblocking(False)

    async def launch(self, artifact: Path, example: bytes | None) -> Started:
        """Start it and wait until its model is warm.

        Raises InvalidRequest when it refuses the model, ModelFailed when it dies or takes longer than load_timeout_s.
        """
        try:
            start = await asyncio.to_thread(self._furnish, artifact, example)
            self._spawn()
            async with asyncio.timeout(self._settings.load_timeout_s):
                answer = await self._converse(start)
        except BaseException as error:
            await self.end("it did not start in time" if isinstance(error, TimeoutError) else "its start was given up")
            if isinstance(error, TimeoutError):
                raise ModelFailed("its process was not ready in time") from None
            raise
        if isinstance(answer, Refused):
            await self.end("it refused its model")
            raise InvalidRequest(answer.reason[:2000])
        return answer

    def hand_over(self) -> socket.socket:
        """Its socket, whose new owner closes it."""
        self._handed_over = True
        return self.connection

    def kill(self, cause: str) -> None:
        """End it at once, and everything it started in its session."""
        self._cause = self._cause or cause
        if self.pid and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self, cause: str, patience: float = 0.0) -> None:
        """Close its socket, upon which it leaves by itself; kill it after `patience` seconds. Cleans up after it."""
        self._cause = self._cause or cause
        self._other.close()
        if not self._handed_over:
            self.connection.close()
        if self.pid:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.exited), patience)
            self.kill(cause)
            await asyncio.shield(self.exited)
        if self._watch is not None:
            await asyncio.wait((self._watch,), timeout=1.0)
            self._watch.cancel()
        await asyncio.to_thread(self._folder.remove)

    # --- starting -------------------------------------------------------------------------------------------------

    def _furnish(self, artifact: Path, example: bytes | None) -> Start:
        """Copy what it needs into its folder, readable by it alone."""
        copy = self._folder.copy(artifact, "artifact")
        sample = "" if example is None else str(self._folder.write("example", example))
        self._folder.hand_over()
        return Start(
            self.version,
            str(copy),
            sample,
            self._settings.threads,
            self._device,
            self._settings.default_max_batch,
            self._max_reply,
        )

    def _spawn(self) -> None:
        """On the event loop's thread: a child dies with the *thread* that started it."""
        read, write = os.pipe()
        loop = asyncio.get_running_loop()
        descriptor = self._other.fileno()
        arguments = [str(descriptor), str(self._uid), str(os.getpid())]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module, by number
                [sys.executable, "-P", "-s", "-u", "-m", "workers.child_main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                cwd=self._folder.path,
                env=environment(self._folder.path, self._settings.threads, self._device),
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        finally:
            os.close(write)
            self._other.close()
        self.pid = process.pid
        threading.Thread(target=self._wait, args=(process, loop), name=f"wait {process.pid}", daemon=True).start()
        self._watch = asyncio.create_task(self._look_after(read))

    def _wait(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        code = process.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._gone, code)

    def _gone(self, code: int) -> None:
        if not self.exited.done():
            how = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
            self.exited.set_result(self._cause or how)

    async def _converse(self, start: Start) -> Started | Refused:
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self.connection, encode(start))
            length = int.from_bytes(await self._exactly(loop, 4), "little")
            if length > MAX_ANSWER:
                raise ValueError(f"{length} bytes")
            return decode_answer(await self._exactly(loop, length))
        except OSError:  # it has closed its end, so it is dying
            await asyncio.wait((self.exited,), timeout=LAST_WORDS_S)
            self.kill("it closed its connection")
        except ValueError:
            self.kill("it spoke nonsense")
        raise ModelFailed(f"its process died while it loaded: {await asyncio.shield(self.exited)}")

    async def _exactly(self, loop: asyncio.AbstractEventLoop, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await loop.sock_recv(self.connection, min(1 << 16, count - len(data)))
            if not piece:
                raise ConnectionResetError
            data += piece
        return bytes(data)

    # --- watching -------------------------------------------------------------------------------------------------

    async def _look_after(self, pipe: int) -> None:
        """Put what it prints into the log; kill it when it holds more memory than it may."""
        loop, limit = asyncio.get_running_loop(), self._settings.child_memory
        printed = Printed(self.version.key)
        transport, _ = await loop.connect_read_pipe(lambda: printed, os.fdopen(pipe, "rb", 0))
        try:
            while not self.exited.done():
                await asyncio.wait((self.exited,), timeout=MEMORY_INTERVAL_S)
                if resident(self.pid) > limit:
                    self.kill(f"it held more than {limit} bytes of memory")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(printed.over.wait(), LAST_WORDS_S)
        finally:
            transport.close()


def environment(folder: Path, threads: int, device: str = "cpu") -> dict[str, str]:
    """All that a child's environment holds. One that runs on a GPU sees the devices that this process does."""
    count = str(threads)
    devices = {VISIBLE: os.environ[VISIBLE]} if device != "cpu" and VISIBLE in os.environ else {}
    return {
        **devices,
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "USER": "penstock",
        "LOGNAME": "penstock",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
    }
