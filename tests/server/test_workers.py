"""`penstock workers` that cannot start: one sentence, exit 1. On a real cluster: `tests/workers/test_on_ray.py`."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.running import COMMAND, clean_environment


def refused(home: Path, why: str, **variables: str) -> None:
    environment = clean_environment() | {"PENSTOCK_HOME": str(home)} | variables
    done = subprocess.run([COMMAND, "workers"], env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stderr
    assert why in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_without_a_broker_it_says_what_to_set(tmp_path: Path) -> None:
    refused(tmp_path, "PENSTOCK_AMQP_URL")


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    """Ray by itself would try for a minute, and then end the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    refused(tmp_path, address, PENSTOCK_AMQP_URL="amqp://127.0.0.1:1/", RAY_ADDRESS=address)
