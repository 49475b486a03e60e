"""stdout and stderr of a server: whoever reads them may close them or go, and the server goes on."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


class Outlet(io.TextIOBase):
    """A stream that never fails: what nobody takes any more goes nowhere. None: it was closed from the beginning."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if self._stream is None else self._stream.encoding

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("there is no descriptor")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
            except (OSError, ValueError):
                self._give_up(self._stream)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up(self._stream)

    def _give_up(self, stream: TextIO) -> None:
        """What is buffered still has to go somewhere, or the interpreter stumbles over it at its exit."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def secure() -> None:
    """Put outlets in the place of this process's stdout and stderr. Descriptors 0 to 2 that are closed are taken, since
    the event loop's library breaks down where a socket gets such a number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = Outlet(sys.stdout), Outlet(sys.stderr)
