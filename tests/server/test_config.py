"""`penstock config`: every setting, its value, where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError

from core import settings
from core.errors import InvalidRequest
from core.settings import Settings
from server import config


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}", raising=False)
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}_FILE", raising=False)


def test_every_setting_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With its variable, its value, its origin and what it is; as a table that no pipe cuts off."""
    monkeypatch.setenv("PENSTOCK_WINDOW", "3")
    config.config()
    lines = capsys.readouterr().out.splitlines()
    for name, field in Settings.model_fields.items():
        (line,) = [line for line in lines if line.startswith(f"PENSTOCK_{name.upper()} ")]
        assert str(field.description) in line
    (line,) = [line for line in lines if "PENSTOCK_WINDOW" in line]
    assert line.split()[1:3] == ["3", "environment"]


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for programs: the origin is `default` or the variable that was set."""
    monkeypatch.setenv("PENSTOCK_WINDOW", "3")
    config.config(json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(Settings.model_fields)
    assert (rows["window"]["value"], rows["window"]["origin"]) == ("3", "PENSTOCK_WINDOW")
    assert rows["queue_bound"]["origin"] == "default"


def test_wrong_values_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1 and one sentence with each variable that is wrong."""
    monkeypatch.setenv("PENSTOCK_WINDOW", "0")
    monkeypatch.setenv("PENSTOCK_HTTP_PORT", "x")
    with pytest.raises(typer.Exit) as exit_:
        config.config()
    assert exit_.value.exit_code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "PENSTOCK_WINDOW" in captured.err
    assert "PENSTOCK_HTTP_PORT" in captured.err
    assert captured.err.count("\n") == 1


SECRET_URL = "mongodb://penstock:hunter2@db.example/?tlsCertificateKeyFilePassword=hunter2"


@pytest.mark.parametrize("where", ["variable", "file"])
def test_a_secret_is_read_and_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    """From its variable or from a file that another variable names: in use whole, printed without its password."""
    if where == "variable":
        monkeypatch.setenv("PENSTOCK_MONGO_URL", SECRET_URL)
    else:
        (tmp_path / "url").write_text(SECRET_URL + "\n")
        monkeypatch.setenv("PENSTOCK_MONGO_URL_FILE", str(tmp_path / "url"))
    read = settings.load()
    assert read.mongo_url == SECRET_URL
    config.config(json=True)
    printed = capsys.readouterr().out
    assert "hunter2" not in printed + repr(read)
    (row,) = [row for row in json.loads(printed) if row["name"] == "mongo_url"]
    assert row["value"] == "mongodb://penstock:***@db.example/?***"
    assert row["origin"] == ("PENSTOCK_MONGO_URL" if where == "variable" else "PENSTOCK_MONGO_URL_FILE")


def test_a_secret_file_that_will_not_do_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that cannot be read, and one beside the variable itself; nothing of the secret is in the sentence."""
    monkeypatch.setenv("PENSTOCK_MONGO_URL_FILE", str(tmp_path / "missing"))
    with pytest.raises(InvalidRequest, match="PENSTOCK_MONGO_URL_FILE: the file cannot be read"):
        settings.load()
    monkeypatch.setenv("PENSTOCK_MONGO_URL", SECRET_URL)
    with pytest.raises(InvalidRequest, match="both set") as caught:
        settings.load()
    assert "hunter2" not in caught.value.message


def test_what_the_server_decides_itself_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` and what is in force; a value that was set is shown as it is, false too."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    names = ("allow_code", "compute_threads", "child_memory_bytes")
    config.config(json=True)
    rows = {row["name"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert [rows[name] for name in names] == ["auto (True)", "auto (2)", "auto (3072000)"]
    for name, value in zip(names, ("false", "1", "5"), strict=True):
        monkeypatch.setenv(f"PENSTOCK_{name.upper()}", value)
    config.config(json=True)
    rows = {row["name"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert [rows[name] for name in names] == ["False", "1", "5"]


@pytest.mark.parametrize("value", ["0", "4.1"])
def test_a_revoked_key_is_known_everywhere_within_five_seconds(value: str) -> None:
    """So the repository cannot be asked less often than every four."""
    with pytest.raises(ValidationError):
        Settings(poll_interval_s=float(value))
