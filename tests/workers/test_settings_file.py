"""How replicas come by their settings."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from core.settings import Settings
from workers.settings_file import settings_from, write_settings


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """URLs with their passwords among it; a relative folder means the same to a process elsewhere."""
    told = Settings(amqp_url="amqp://user:secret@h/", mongo_url="mongodb://user:secret@h/", home=Path("here"), window=3)
    write_settings(told, tmp_path / "file")
    assert settings_from(tmp_path / "file") == told.model_copy(update={"home": Path("here").absolute()})


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """Also where an earlier one was there for all to see."""
    file = tmp_path / "file"
    file.write_text("{}")
    file.chmod(0o644)
    write_settings(Settings(amqp_url="amqp://user:secret@h/"), file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_host_without_the_file_has_them_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_AMQP_URL", "amqp://elsewhere/")
    assert settings_from(tmp_path / "none").amqp_url == "amqp://elsewhere/"


def test_where_telemetry_goes_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes were started before anybody knew; what their own environment says comes first."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    write_settings(Settings(), tmp_path / "file")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
    settings_from(tmp_path / "file")
    assert os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    assert os.environ["OTEL_TRACES_SAMPLER_ARG"] == "1"
