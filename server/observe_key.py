"""The file that Prometheus reads its key from (`credentials_file`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from core.errors import PenstockError, Unavailable
from core.identity import OBSERVE, Verifier
from repository.commands import Commands

READABLE = 0o440
"""Prometheus is another user, of the same group."""


async def provide_observe_key(file: Path, verifier: Verifier, commands: Commands) -> None:
    """A key of role observe in `file`; one that is good already is kept. Raises Unavailable where it cannot be left
    there: then none is made."""
    if _good(file, verifier):
        return
    with _replacing(file) as stream:
        issued = await commands.create_key("prometheus", role=OBSERVE)
        stream.write(issued.secret)


def _good(file: Path, verifier: Verifier) -> bool:
    with suppress(OSError, PenstockError):
        return verifier.verify(file.read_bytes().strip()).may(OBSERVE)
    return False


@contextmanager
def _replacing(file: Path) -> Iterator[TextIO]:
    """A file that takes the place of `file` once all is written."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE), "w") as stream:
            os.fchmod(stream.fileno(), READABLE)  # whatever the umask
            yield stream
        partial.rename(file)
    except OSError as error:
        raise Unavailable(f"the key for Prometheus cannot be left in {file}: {error.strerror}") from None
