"""compose.yaml as its tests see it."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ONE_SHOTS = {"secrets", "setup"}


@cache
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def ours() -> dict[str, dict[str, Any]]:
    """Those that run an image of ours."""
    return {name: service for name, service in services().items() if service["image"].startswith("penstock-")}


def programs(service: dict[str, Any]) -> list[list[str]]:
    """Each command line that a service runs: those of its shell script, where it runs one, but for assignments."""
    command: list[str] = service["command"]
    if command[:2] != ["sh", "-ec"]:
        return [command]
    lines = [shlex.split(line) for line in command[2].replace("$$", "$").split(";")]
    return [line[1:] if line[0] == "exec" else line for line in lines if "=" not in line[0]]


def seconds(duration: str) -> float:
    """Of a duration as compose writes it: 75s."""
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, duration
    return float(match[1])
