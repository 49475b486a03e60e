"""stdout and stderr of a server, whatever becomes of who reads them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from server.outlets import Outlet

SMALL = 4096
"""Bytes that the tests' pipes hold."""


class Pipe:
    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, SMALL)

    def close(self) -> None:
        for descriptor in (self.read, self.write):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def received(pipe: Pipe, last: bytes) -> bytes:
    """What comes out of it until its end is `last`."""
    data = b""
    while not data.endswith(last):
        assert select.select((pipe.read,), (), (), 10)[0], data[-200:]
        data += os.read(pipe.read, 1 << 16)
    return data


def in_time(work: Callable[[], object]) -> None:
    """Do it in a thread, which must not be held up."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for the reader"


def test_what_is_written_arrives(pipe: Pipe) -> None:
    """In order, more than a pipe holds, too."""
    outlet = Outlet(pipe.write, "utf-8")
    lines = [f"line {number} — ünïcode\n" for number in range(1000)]
    for line in lines:
        assert outlet.write(line) == len(line)
    assert received(pipe, b"line 999 \xe2\x80\x94 \xc3\xbcn\xc3\xafcode\n").decode() == "".join(lines)


def test_what_the_encoding_lacks_is_escaped(pipe: Pipe) -> None:
    """Other scripts in ASCII, lone surrogates anywhere."""
    for encoding, text, escaped in (("ascii", "é\n", b"\\xe9\n"), ("utf-8", "\ud800\n", b"\\ud800\n")):
        Outlet(pipe.write, encoding).write(text)
        assert received(pipe, b"\n") == escaped


def test_a_reader_that_does_not_read(pipe: Pipe) -> None:
    """No write waits for it; what is too much is dropped, counted, and told of once it reads again."""
    full = os.write(pipe.write, bytes(SMALL))  # so nothing leaves before the reader reads
    outlet = Outlet(pipe.write, "utf-8", most=10 * SMALL)
    lines = [f"{number:>99}\n" for number in range(1000)]
    with capture_logs() as logged:
        in_time(lambda: [outlet.write(line) for line in lines])
        outlet.flush()
        assert not logged
        kept = lines[: 10 * SMALL // 100]
        assert received(pipe, kept[-1].encode())[full:].decode() == "".join(kept)
        outlet.write("and on\n")
        assert received(pipe, b"and on\n") == b"and on\n"
    assert [line["lines_dropped"] for line in logged] == [len(lines) - len(kept)]


def test_a_reader_that_has_gone(pipe: Pipe) -> None:
    """What nobody takes any more goes nowhere, and nothing waits."""
    outlet = Outlet(pipe.write, "utf-8")
    os.close(pipe.read)
    for _ in range(3):
        outlet.write("x" * 10 * SMALL)
        outlet.drain(10)
    assert os.path.samestat(os.fstat(pipe.write), os.stat(os.devnull))


def test_a_descriptor_that_does_not_block(pipe: Pipe) -> None:
    """As a terminal is that another program has made so: nothing is lost."""
    os.set_blocking(pipe.write, False)
    outlet = Outlet(pipe.write, "utf-8")
    outlet.write("x" * 10 * SMALL + "\n")
    assert len(received(pipe, b"x\n")) == 10 * SMALL + 1


def test_draining_is_bounded(pipe: Pipe) -> None:
    """It waits for what is on its way, and no longer than it may."""
    outlet = Outlet(pipe.write, "utf-8")
    outlet.write("first\n")
    outlet.drain(10)
    assert os.read(pipe.read, SMALL) == b"first\n"
    outlet.write("x" * 10 * SMALL + "\n")
    begun = time.monotonic()
    outlet.drain(0.1)
    assert 0.1 <= time.monotonic() - begun < 5
    received(pipe, b"x\n")
    outlet.drain(10)


def program(text: str, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys\nfrom server import outlets\noutlets.secure()\n{text}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def test_a_process_ends_although_nobody_reads(pipe: Pipe) -> None:
    process = program("sys.stderr.write('x' * 1_000_000)", pipe.write)
    assert process.wait(20) == 0


def test_last_words_arrive() -> None:
    """The traceback of what ended the process, too."""
    process = program("sys.stderr.write('x' * 300_000)\nraise ValueError('the end')", subprocess.PIPE)
    _, said = process.communicate(timeout=20)
    assert said.startswith(b"x" * 300_000)
    assert said.endswith(b"ValueError: the end\n")


def test_closed_descriptors_are_taken() -> None:
    """A socket never gets such a number: the event loop's library breaks down there."""
    text = "import os; from server import outlets; outlets.secure(); print('x'); assert os.pipe()[0] > 2"
    assert subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{text}" <&- >&- 2>&-'], timeout=20).returncode == 0
