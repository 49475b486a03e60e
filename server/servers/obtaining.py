"""Having what no engine brings: Go programs built from `deploy/services/`, packages of the system installed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from core.errors import Unavailable
from server.servers.base import Say
from server.servers.places import locked

RECIPES = Path(__file__).resolve().parents[2] / "deploy" / "services"
BUILD_WITHIN_S = 900
INSTALL_WITHIN_S = 900


def recipe(name: str) -> Path:
    """The folder of a recipe. Raises Unavailable where this installation came without: they belong to the checkout."""
    folder = RECIPES / name
    if not folder.is_dir():
        raise Unavailable(f"the recipe deploy/services/{name} is missing: run this from a checkout of Penstock")
    return folder


def required(go_mod: str, module: str) -> str:
    """The version of `module` that a go.mod requires, without its v."""
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)} v(\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise Unavailable(f"go.mod does not require {module}")
    return found[1]


class GoProgram:
    """A program of the recipe `name`, in the version of `module` that its go.mod requires; `package` is what is built.

    What is built is kept outside the checkout under a name made of version and sources, so that it is built once.
    """

    def __init__(self, name: str, module: str, package: str = ".") -> None:
        self._name = name
        self._module = module
        self._package = package

    @property
    def version(self) -> str:
        return required((recipe(self._name) / "go.mod").read_text(), self._module)

    @property
    def path(self) -> Path:
        """Of the executable, once it is built."""
        sources = sorted(file for file in recipe(self._name).iterdir() if file.suffix in (".go", ".mod", ".sum"))
        digest = hashlib.sha256(self._package.encode())
        for source in sources:
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        return cache() / f"{self._name}-{self.version}-{digest.hexdigest()[:16]}"

    def build(self, say: Say) -> None:
        """Unless that was done before; who comes second waits for the first. Raises Unavailable."""
        target = self.path
        with locked(target.with_name(f"{target.name}.lock")):
            if target.exists():
                return
            if shutil.which("go") is None:
                raise Unavailable(
                    f"{self._name} is built with Go (1.24 or later), which is not on the PATH: install it, or start a "
                    "container engine, or name a server that runs elsewhere (docs/services.md)"
                )
            say(f"building {self._name} {self.version}")
            with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as scratch:
                made = Path(scratch) / self._name
                _build(recipe(self._name), self._package, made)
                made.rename(target)


def cache() -> Path:
    """Where built programs are kept: $XDG_CACHE_HOME/penstock, else ~/.cache/penstock."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock"


def _build(folder: Path, package: str, target: Path) -> None:
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-o", str(target), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    done = _run(command, BUILD_WITHIN_S, cwd=folder, env=environment)
    if done.returncode:
        raise Unavailable(f"{folder.name} could not be built: {_last_line(done)}")


def install(name: str, title: str, may_install: bool, say: Say) -> None:
    """Run the recipe's `install` as root. Raises Unavailable, with the command to run, where that is not allowed."""
    script = recipe(name) / "install"
    if not may_install:
        raise Unavailable(f"{title} is not installed: run  sudo sh {script}")
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{title} is not installed, and there is no apt-get to install it with")
    say(f"installing {title}")
    done = _run([*([] if os.getuid() == 0 else ["sudo", "-n"]), "sh", str(script)], INSTALL_WITHIN_S)
    if done.returncode:
        raise Unavailable(f"{title} could not be installed ({_last_line(done)}): run  sudo sh {script}")


def _run(
    command: list[str], within_s: float, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within_s,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{' '.join(command)}` took longer than {within_s:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"`{command[0]}` cannot be run: {error.strerror}") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
