"""The settings of `penstock workers`, for the replicas that Ray starts: only the way to them goes through Ray."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

import core.settings
from core.settings import Settings

TELEMETRY = "otel"
"""What the file calls the OTEL_* variables."""


def write_settings(settings: Settings, file: Path) -> None:
    """All that is no default, URLs with their passwords among it: mode 0600, replaced whole."""
    told = settings.model_dump(mode="json", exclude_defaults=True) | {"home": str(settings.home.absolute())}
    told[TELEMETRY] = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
        output.write(msgspec.json.encode(told))
    partial.replace(file)


def settings_from(file: Path) -> Settings:
    """What was written there; on another host, where there is no such file, those of this process's environment.

    OpenTelemetry reads its own from the environment, so there it is put, unless something stands there."""
    try:
        told = msgspec.json.decode(file.read_bytes(), type=dict)
    except FileNotFoundError:
        return core.settings.load()
    for name, value in told.pop(TELEMETRY, {}).items():
        os.environ.setdefault(name, value)
    return Settings(**told)
