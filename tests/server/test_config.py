"""`penstock config`: every setting, its value, where it came from."""

from __future__ import annotations

import json

import pytest
import typer

from core.settings import Settings
from server import config


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}", raising=False)


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


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is secret is shown as stars."""
    monkeypatch.setattr(config, "SECRET", frozenset({"token"}))
    (row,) = config.shown([("token", "abc", "default", "")])
    assert "abc" not in row.values()
