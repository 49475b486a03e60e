"""The settings of `penstock workers`, for the replicas that Ray starts: only the way to them goes through Ray."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

import core.settings
from core.settings import Settings


def write_settings(settings: Settings, file: Path) -> None:
    """All that is no default, URLs with their passwords among it: mode 0600, replaced whole."""
    told = settings.model_dump(mode="json", exclude_defaults=True) | {"home": str(settings.home.absolute())}
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
        output.write(msgspec.json.encode(told))
    partial.replace(file)


def settings_from(file: Path) -> Settings:
    """What was written there; on another host, where there is no such file, those of this process's environment."""
    try:
        return Settings(**msgspec.json.decode(file.read_bytes(), type=dict))
    except FileNotFoundError:
        return core.settings.load()
