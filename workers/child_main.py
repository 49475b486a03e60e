"""A child process: one model that brings code. `python -m workers.child_main FD UID PARENT`, by `workers/life.py`.

Its main thread loads the model and runs it; a second thread reads the socket. It ends when the socket does.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from core.errors import ModelFailed, PenstockError
from workers.confine import confine
from workers.described import described
from workers.messages import Batch, Cancel, Reply, decode, encode, failure_of, frame_length
from workers.prepare import Prepared, prepare
from workers.starting import Refused, Start, Started, decode_start
from workers.starting import encode as encode_start
from workers.worker import Worker

log = structlog.get_logger(__name__)

JOINED = 1 << 16
"""Replies of fewer bytes are sent with one system call."""


def main(descriptor: int, uid: int, parent: int) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(bool_as_flag=False),
        ]
    )
    os.set_inheritable(descriptor, False)
    confine(uid, parent)
    connection = socket.socket(fileno=descriptor)
    stream = io.BufferedReader(socket.SocketIO(connection, "r"), 1 << 18)
    start = decode_start(bytes(_read(stream)))
    prepared = _prepare(start, connection)
    worker = Worker(prepared.runner, prepared.samples, _call)
    version = worker.version
    samples = [(rows, seconds) for rows, seconds in prepared.samples]
    connection.sendall(encode_start(Started(version.signature, version.max_batch, samples, prepared.note)))
    threading.Thread(target=_receive, args=(stream, connection, worker, start.max_reply), daemon=True).start()
    worker.work()


def _prepare(start: Start, connection: socket.socket) -> Prepared:
    example = Path(start.example).read_bytes() if start.example else None
    try:
        return prepare(
            start.version,
            Path(start.artifact),
            example,
            start.threads,
            start.default_max_batch,
            isolated=True,
            device=start.device,
        )
    except BaseException as error:
        log.error("not loaded", exc_info=error)
        reason = error.message if isinstance(error, PenstockError) else f"the model does not load: {described(error)}"
        connection.sendall(encode_start(Refused(reason)))
        raise SystemExit(1) from None


def _receive(stream: io.BufferedIOBase, connection: socket.socket, worker: Worker, max_reply: int) -> None:
    """Hand what comes to the worker; when nothing more can come, the process ends, whatever its model does."""
    try:
        while True:
            message = decode(_read(stream))
            if isinstance(message, Batch):
                worker.submit(message, lambda reply: _send(connection, reply, max_reply))
            elif isinstance(message, Cancel):
                worker.cancel(message)
    except EOFError:
        os._exit(0)
    except BaseException:
        log.exception("socket failed")
        os._exit(1)


def _read(stream: io.BufferedIOBase) -> bytearray:
    """One frame, without its length. Raises EOFError when the other side has closed."""
    frame = bytearray(frame_length(_fill(stream, bytearray(4))))
    return _fill(stream, frame)


def _fill(stream: io.BufferedIOBase, buffer: bytearray) -> bytearray:
    view, at = memoryview(buffer), 0
    while at < len(buffer):
        count = stream.readinto(view[at:])
        if not count:
            raise EOFError
        at += count
    return buffer


def _send(connection: socket.socket, reply: Reply, max_reply: int) -> None:
    buffers = encode(reply)
    size = sum(memoryview(buffer).nbytes for buffer in buffers)
    if size > max_reply:
        failure = failure_of(ModelFailed(f"the model's outputs are {size} bytes, more than the {max_reply} allowed"))
        buffers = encode(Reply(reply.id, [failure] * len(reply.results), reply.timing))
    if size < JOINED:
        connection.sendall(b"".join(buffers))
        return
    for buffer in buffers:
        connection.sendall(buffer)


def _call(function: Callable[..., Any], *arguments: Any) -> None:
    function(*arguments)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
