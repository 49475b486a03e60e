"""Prometheus: scrapes every process of Penstock that has left a file with its address in `PENSTOCK_HOME/metrics`.

    [{"targets": ["127.0.0.1:9464"], "labels": {"process": "gateway"}}]

A file that comes, changes or goes is noticed within seconds. Rules are the files of `metrics/rules`; they are read at
the start. From the system's package, run under our own user and folder, or in a container.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar

from core.errors import Unavailable
from server.servers import obtaining
from server.servers.base import Container, Launch, Say, Server, says_ok
from server.servers.places import Place

PROGRAM = "prometheus"
ALERTS = Path(__file__).resolve().parents[2] / "deploy" / "alerts.yml"
"""The rules that come with a checkout."""
SCRAPE_S = 5
KEPT = ("--storage.tsdb.retention.time=15d", "--storage.tsdb.retention.size=512MB")
VERSION_WITHIN_S = 10.0
READABLE = 0o755
"""The user of a container is another one; what is above these folders lets nobody in."""


class Prometheus(Server):
    """Without a password: whoever may connect to loopback may read it."""

    name: ClassVar[str] = "prometheus"
    title: ClassVar[str] = "Prometheus"
    variable: ClassVar[str] = "PENSTOCK_PROMETHEUS_URL"
    image_name: ClassVar[str] = "prom/prometheus:v3.13.5"
    start_within_s: ClassVar[float] = 60.0
    stop_within_s: ClassVar[float] = 20.0

    def version(self) -> str:
        try:
            told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, timeout=VERSION_WITHIN_S)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        found = re.search(r"version ([\d.]+)", told.stdout + told.stderr)
        return found[1] if found else "unknown"

    def obtain(self, say: Say, may_install: bool) -> None:
        if shutil.which(PROGRAM) is None:
            obtaining.install("prometheus", self.title, may_install, say)

    def launch(self, place: Place) -> Launch:
        program = shutil.which(PROGRAM)
        if program is None:
            raise Unavailable(f"{self.title} was installed, but {PROGRAM} is not on the PATH")
        listen = f"127.0.0.1:{place.port('port')}"
        config = place.write("prometheus.yml", configuration(targets(place)))
        arguments = _arguments(config, place.inner("data"), listen)
        return Launch((program, *arguments), f"http://{listen}")

    def container(self, place: Place) -> Container:
        """On the machine's own network: what it scrapes is on loopback."""
        listen = f"127.0.0.1:{place.port('port')}"
        inside = Path("/etc/prometheus/metrics")
        config = place.write("prometheus.yml", configuration(inside), mode=0o644)
        return Container(
            f"http://{listen}",
            {},
            _arguments(Path("/etc/prometheus/prometheus.yml"), Path("/prometheus"), listen),
            volume="/prometheus",
            files={str(config): "/etc/prometheus/prometheus.yml", str(targets(place)): str(inside)},
            network="host",
        )

    def answers(self, url: str, place: Place) -> bool:
        return says_ok(f"{url}/-/ready")


def targets(place: Place) -> Path:
    """`PENSTOCK_HOME/metrics`, where processes leave their addresses; made with its `rules` where it is missing."""
    folder = place.home / "metrics"
    for each in (folder, folder / "rules"):
        each.mkdir(exist_ok=True)
        each.chmod(READABLE)  # whatever the umask, and whoever made it
    if ALERTS.exists():
        shutil.copyfile(ALERTS, folder / "rules" / "penstock.yml")
    return folder


def configuration(folder: Path) -> str:
    """`folder`: that of the targets, as Prometheus sees it."""
    files, rules = json.dumps(f"{folder}/*.json"), json.dumps(f"{folder}/rules/*.yml")
    return f"""\
global: {{scrape_interval: {SCRAPE_S}s, evaluation_interval: {SCRAPE_S}s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: penstock
    file_sd_configs:
      - {{files: [{files}], refresh_interval: {SCRAPE_S}s}}
"""


def _arguments(config: Path, data: Path, listen: str) -> tuple[str, ...]:
    return (
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address={listen}",
        *KEPT,
        "--log.level=warn",
    )
