"""deploy/secrets.sh: passwords that nobody chose, made once, each where it is needed."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.composed import ROOT, services


def make(folder: Path) -> dict[str, str]:
    """Run the script as the service `secrets` does; every file's content by its path in `folder`."""
    script = ROOT / "deploy/secrets.sh"
    subprocess.run(["sh", script, folder, f"{os.getuid()}:{os.getgid()}"], check=True, timeout=30)
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("rabbitmq", "mongo", "penstock", "observe"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_urls_hold_the_passwords_that_the_servers_are_given(folder: Path) -> None:
    """And lead to services of compose.yaml."""
    made = make(folder)
    amqp, mongo = urlsplit(made["penstock/amqp-url"].strip()), urlsplit(made["penstock/mongo-url"].strip())
    assert {amqp.hostname, mongo.hostname} <= services().keys()
    assert f"default_user = {amqp.username}\ndefault_pass = {amqp.password}\n" in made["rabbitmq/10-penstock.conf"]
    assert f'user: "{mongo.username}", pwd: "{mongo.password}"' in made["mongo/penstock.js"]
    assert mongo.query == "authSource=penstock"


def test_every_password_is_its_own_and_long(folder: Path) -> None:
    """192 random bits each."""
    made = make(folder)
    found = re.findall(r"\b[0-9a-f]{48}\b", "\n".join(made.values()))
    assert len(found) == 6
    assert len(set(found)) == 4


def test_our_credentials_are_read_by_their_owner_alone(folder: Path) -> None:
    """Mode 0400; what the servers read stands in folders that only they mount."""
    make(folder)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (folder / "penstock").iterdir()}
    assert modes == {"amqp-url": 0o400, "mongo-url": 0o400, "ray-token": 0o400}
    mounting = {
        volume.split(":")[0]: name
        for name, service in services().items()
        for volume in service.get("volumes", [])
        if name != "secrets" and volume.startswith(("rabbitmq-secrets:", "mongo-secrets:"))
    }
    assert mounting == {"rabbitmq-secrets": "rabbitmq", "mongo-secrets": "mongo"}


def test_what_stands_is_kept(folder: Path) -> None:
    """The servers remember the passwords of their first start."""
    assert make(folder) == make(folder)


def test_a_run_that_was_cut_short_is_begun_anew(folder: Path) -> None:
    """Half of a set would lock our processes out."""
    (folder / "penstock" / "amqp-url").write_text("amqp://half")
    (folder / "penstock" / "amqp-url").chmod(0o400)
    assert "half" not in make(folder)["penstock/amqp-url"]


def test_the_key_for_prometheus_has_a_folder(folder: Path) -> None:
    """Of its own, that our user may write, also where all else was made before there was one; empty, and only there for
    who leaves the key and who reads it."""
    make(folder)
    (folder / "observe").chmod(0o500)
    make(folder)
    assert (folder / "observe").stat().st_uid == os.getuid()
    assert not list((folder / "observe").iterdir())
    mounting = {
        name: volume.partition(":")[2]
        for name, service in services().items()
        for volume in service.get("volumes", [])
        if volume.startswith("observe-secrets:")
    }
    assert mounting == {"secrets": "/secrets/observe", "setup": "/run/observe", "prometheus": "/run/penstock:ro"}
