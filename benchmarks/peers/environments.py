"""An environment for each peer: a virtual environment under $XDG_CACHE_HOME/penstock/peers, made once for its pins."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.load import cache

PINS = Path(__file__).parent / "requirements"
SYSTEM_PYTHON = "/usr/bin/python3"
INTERPRETERS = {"triton": SYSTEM_PYTHON}
"""Whose environment is made with another interpreter than ours: Triton's Python backend loads the distribution's
libpython."""


def environment(name: str) -> Path:
    """Its Python. Raises RuntimeError, in one sentence, where the environment cannot be made."""
    pins = PINS / f"{name}.txt"
    interpreter = INTERPRETERS.get(name, sys.executable)
    place = cache().parent / "peers" / f"{name}-{_key(pins, interpreter)}"
    if not (place / "ready").exists():
        print(f"making the environment of {name} …", flush=True)
        _make(place, pins, interpreter)
        (place / "ready").touch()
    return place / "bin" / "python"


def _key(pins: Path, interpreter: str) -> str:
    return hashlib.sha256(pins.read_bytes() + f"{interpreter} {_version(interpreter)}".encode()).hexdigest()[:12]


def _version(interpreter: str) -> str:
    if shutil.which(interpreter) is None:
        raise RuntimeError(f"there is no {interpreter}, which it needs")
    return subprocess.run([interpreter, "-VV"], capture_output=True, text=True, check=True).stdout.strip()


def _make(place: Path, pins: Path, interpreter: str) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    _run([uv, "venv", "--quiet", "--clear", "--python", interpreter, str(place)])
    python = str(place / "bin" / "python")
    flags = ["--quiet", "--compile-bytecode", "--require-hashes"]  # compiled: the first start is like the others
    _run([uv, "pip", "install", *flags, "--python", python, "-r", str(pins)])


def _run(command: list[str]) -> None:
    """With pip's package index where uv is not told of one, as `requirements/install` does it."""
    index = {"UV_DEFAULT_INDEX": os.environ["PIP_INDEX_URL"]} if os.environ.get("PIP_INDEX_URL") else {}
    done = subprocess.run(command, env=index | dict(os.environ), capture_output=True, text=True)
    if done.returncode:
        why = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it does not say why"]
        raise RuntimeError(f"its packages cannot be had here: {why[-1][:300]}")
