"""The head of a local Ray cluster: `ray start --head`, so that the cluster outlives the drivers that use it.

Ray takes the address 127.0.0.1 for a mistake and goes on with the machine's own, listening on all interfaces, unless a
variable meant for laptops is set; each driver needs it as well, or it looks for the head at the machine's address.
Whoever connects must show the token of the file that RAY_AUTH_TOKEN_PATH names.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from core.errors import Unavailable
from server.servers import processes
from server.servers.base import Launch, Say, Server, connects
from server.servers.places import Place, Running

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
PATIENT = {"RAY_health_check_timeout_ms": "30000", "RAY_health_check_failure_threshold": "10"}
"""A node that shares a busy machine with everything else is slow, not dead."""
EQUAL = {"RAY_worker_niceness": "0"}
"""Ray has its workers give way to whoever else runs on the machine (nice 15); replicas answer requests: they do not."""
OBJECT_STORE_BYTES = 256 << 20
"""Small, for requests do not pass through Ray's object store. Ray's own default is 30 % of the machine's memory."""
LONGEST_FOLDER = 43
"""Ray puts sockets into this folder under up to 64 more bytes; a socket's path has at most 107."""
STARTED = "Ray runtime started"


FEWEST_CPUS = 4
"""A replica is placed by a tenth of a CPU unless its deployment says more: two dozen light models, and those that take
over from them, fit on a machine of two cores, which they share."""


class RayHead(Server):
    """`cpus`: what the node offers to actors; None: the machine's cores, but `FEWEST_CPUS` at least."""

    name: ClassVar[str] = "ray"
    title: ClassVar[str] = "Ray"
    variable: ClassVar[str] = "RAY_ADDRESS"
    start_within_s: ClassVar[float] = 120.0
    stop_within_s: ClassVar[float] = 30.0
    attempts: ClassVar[int] = 3
    """Ray gives its own processes 30 s, no matter how busy the machine is, and then ends."""

    def __init__(self, cpus: int | None = None, object_store_bytes: int = OBJECT_STORE_BYTES) -> None:
        self._cpus = cpus
        self._object_store_bytes = object_store_bytes

    def version(self) -> str:
        return version("ray")

    def obtain(self, say: Say, may_install: bool) -> None:
        if importlib.util.find_spec("ray") is None or not _command().exists():
            raise Unavailable("Ray is not installed here: it comes with the workers' requirements (make up)")

    def launch(self, place: Place) -> Launch:
        place.log.unlink(missing_ok=True)  # what it says of an earlier start is not to be believed
        scratch = _scratch(place)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        token = place.write("token", place.secret("token"))
        address = f"127.0.0.1:{place.port('port')}"
        exports = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), **LOOPBACK}
        metrics = {
            "AUTOSCALER_METRIC_PORT": str(place.port("autoscaler")),
            "DASHBOARD_METRIC_PORT": str(place.port("dashboard metrics")),
        }
        environment = {**exports, **metrics, **PATIENT, **EQUAL, "RAY_USAGE_STATS_ENABLED": "0"}
        return Launch(self._arguments(place), address, environment, exports)

    def _arguments(self, place: Place) -> tuple[str, ...]:
        return (
            str(_command()),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={place.port('port')}",
            f"--ray-client-server-port={place.port('client')}",
            f"--dashboard-port={place.port('dashboard')}",
            f"--dashboard-agent-listen-port={place.port('agent')}",
            "--include-dashboard=false",
            "--include-log-monitor=false",
            "--disable-usage-stats",
            f"--temp-dir={_scratch(place)}",
            f"--object-store-memory={self._object_store_bytes}",
            f"--num-cpus={self._cpus or max(FEWEST_CPUS, os.cpu_count() or 1)}",
            "--log-color=false",
        )

    def answers(self, url: str, place: Place) -> bool:
        connection = connects(url)
        if connection is None:
            return False
        connection.close()
        return STARTED in place.log.read_text(errors="replace") if place.log.exists() else True

    def stop(self, place: Place, running: Running) -> list[str]:
        killed = processes.stop(running.birth, place.mark, self.stop_within_s)
        if _scratch(place).parent != place.folder:
            shutil.rmtree(_scratch(place), ignore_errors=True)
        return killed


def _command() -> Path:
    return Path(sys.executable).parent / "ray"


def _scratch(place: Place) -> Path:
    """Ray's folder of sessions: here where a socket's path stays short enough, else below the system's."""
    here = place.folder / "sessions"
    if len(os.fsencode(here)) <= LONGEST_FOLDER:
        return here
    return Path(tempfile.gettempdir()) / f"penstock-ray-{place.secret('scratch')[:12]}"
