"""A container engine, spoken to through its command `docker`: containers by name, on loopback, data in a volume."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from core.errors import Unavailable
from server.servers.base import Container
from server.servers.places import Place, Running

INFO_WITHIN_S = 5.0
COMMAND_WITHIN_S = 60.0
PULL_WITHIN_S = 900.0
STOP_WITHIN_S = 20


def answers() -> bool:
    """Whether there is an engine, asked for a few seconds at most."""
    if shutil.which("docker") is None:
        return False
    try:
        return bool(_docker("info", "--format", "{{.ServerVersion}}", within_s=INFO_WITHIN_S).strip())
    except Unavailable:
        return False


def container_name(place: Place) -> str:
    """One for each folder of each checkout."""
    digest = hashlib.sha256(str(place.folder).encode()).hexdigest()[:12]
    return f"penstock-{place.folder.name}-{digest}"


def arguments(image: str, container: Container, name: str) -> list[str]:
    """What `docker` is called with to start it."""
    command = ["run", "--detach", "--name", name, "--hostname", "penstock", "--label", "penstock.service"]
    if container.network:
        command += ["--network", container.network]
    for variable, value in container.environment.items():
        command += ["--env", f"{variable}={value}"]
    for ours, inside in container.ports.items():
        command += ["--publish", f"127.0.0.1:{ours}:{inside}"]
    if container.volume:
        command += ["--volume", f"{name}:{container.volume}"]
    for file, where in container.files.items():
        command += ["--volume", f"{file}:{where}:ro"]
    return [*command, image, *container.arguments]


def start(image: str, container: Container, place: Place) -> Running:
    """Start it anew: a container that ended stands in the way, its data do not. Raises Unavailable."""
    name = container_name(place)
    remove(name)
    _docker(*arguments(image, container, name), within_s=PULL_WITHIN_S)
    version = image.rpartition(":")[2].removeprefix("v")
    return Running(url=container.url, version=version, container=name, exports=dict(container.exports))


def pid(name: str) -> int:
    """Of the container's first process; 0 where it does not run."""
    try:
        return int(_docker("inspect", "--format", "{{.State.Pid}}", name))
    except (Unavailable, ValueError):
        return 0


def stop(name: str) -> list[str]:
    """End it and remove it, not its volume. Returns its name where it had to be killed."""
    killed: list[str] = []
    if pid(name):
        _docker("stop", "--time", str(STOP_WITHIN_S), name)
        if _docker("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "137":
            killed.append(name)
    remove(name)
    return killed


def remove(name: str) -> None:
    if name in _docker("ps", "--all", "--format", "{{.Names}}").split():
        _docker("rm", "--force", name)


def last_words(name: str, lines: int = 5) -> str:
    try:
        return _docker("logs", "--tail", str(lines), name).strip()
    except Unavailable:
        return ""


def act(verb: str, name: str) -> None:
    """`docker VERB`: pause, unpause, kill. Raises Unavailable where it fails."""
    _docker(verb, name)


def run_inside(name: str, *command: str) -> str:
    """What a command prints inside the container. Raises Unavailable where it fails."""
    return _docker("exec", name, *command)


def _docker(*words: str, within_s: float = COMMAND_WITHIN_S) -> str:
    try:
        done = subprocess.run(
            ["docker", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within_s,
            env={**os.environ, "LC_ALL": "C"},
            cwd=Path("/"),
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`docker {words[0]}` took longer than {within_s:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"`docker` cannot be run: {error.strerror}") from None
    if done.returncode:
        raise Unavailable(f"`docker {words[0]}` failed: {done.stdout.strip().splitlines()[-1:]}")
    return done.stdout
