"""`penstock config`: every setting, its value, where it came from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError

from core import settings
from core.errors import InvalidRequest
from core.settings import Settings
from server import config
from tests.running import COMMAND, clean_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}", raising=False)
        monkeypatch.delenv(f"PENSTOCK_{name.upper()}_FILE", raising=False)
    monkeypatch.setenv(settings.CONFIG, "")


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


def test_a_slip_in_a_variables_name_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it resembles; what others put there, and what sets something or is a client's, is not."""
    for name in ("MAX_BODY_BYTE", "AMQP_URI", "HTTP_PROT"):
        monkeypatch.setenv(f"PENSTOCK_{name}", "1")
    for name in ("URL", "GRPC", "CONTROL", "API_KEY", "JAEGER_URL", "SERVICE_HOST", "PORT_8080_TCP_PORT"):
        monkeypatch.setenv(f"PENSTOCK_{name}", "1")
    monkeypatch.setenv("PENSTOCK_window", "3")
    monkeypatch.setenv("PENSTOCK_MONGO_URL_FILE", "")
    config.config(json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert captured.err.splitlines() == [
        "penstock: PENSTOCK_AMQP_URI sets nothing: is PENSTOCK_AMQP_URL meant?",
        "penstock: PENSTOCK_HTTP_PROT sets nothing: is PENSTOCK_HTTP_PORT meant?",
        "penstock: PENSTOCK_MAX_BODY_BYTE sets nothing: is PENSTOCK_MAX_BODY_BYTES meant?",
    ]


def test_a_server_warns_of_a_slip() -> None:
    """In its log, whatever becomes of its start: this one lacks a broker."""
    environment = clean_environment() | {"PENSTOCK_QUEUE_BOUNDS": "7"}
    ended = subprocess.run([COMMAND, "gateway"], env=environment, capture_output=True, text=True, check=False)
    (line,) = [line for line in (ended.stdout + ended.stderr).splitlines() if "PENSTOCK_QUEUE_BOUNDS" in line]
    assert "resembles=PENSTOCK_QUEUE_BOUND " in line


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


FAR = ["inf", "-inf", "nan", "1e30", "12345678901234567890"]
NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if name.endswith(("_s", "_ms")) or (field.annotation in (int, float) and not name.endswith("_bytes"))
]


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_all_measure_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Not only where it overflows, in the middle of something else."""
    monkeypatch.setenv(f"PENSTOCK_{name.upper()}", value)
    with pytest.raises(InvalidRequest, match=f"^PENSTOCK_{name.upper()}: "):
        settings.load()


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name.endswith("_bytes")])
def test_a_size_beyond_what_a_machine_counts_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"PENSTOCK_{name.upper()}", str(1 << 63))
    with pytest.raises(InvalidRequest, match=f"^PENSTOCK_{name.upper()}: "):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("METRICS_BUCKETS_MS", "abc", "it is no json, not 'abc'"),
        ("METRICS_BUCKETS_MS", "[" * 100_000, "it is no json"),
        ("METRICS_BUCKETS_MS", "[1, 2, 2]", "each bound is more than the one before"),
        ("METRICS_BUCKETS_MS", "[2, 1]", "each bound is more than the one before"),
        ("METRICS_BUCKETS_MS", "[]", "there is one at least"),
        ("METRICS_BUCKETS_MS", "[0, 1]", "greater than 0"),
        ("METRICS_BUCKETS_MS", "[1, Infinity]", "finite"),
        ("METRICS_BUCKETS_MS", "7", "valid tuple"),
        ("TRACE_RATIOS", '{"a":', "it is no json"),
        ("TRACE_RATIOS", '{"a": 2}', "less than or equal to 1"),
        ("TRACE_RATIOS", '{"a": NaN}', "finite"),
        ("TRACE_RATIOS", "0.5", "valid dictionary"),
    ],
)
def test_a_value_of_several_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """By its variable, in one line."""
    monkeypatch.setenv(f"PENSTOCK_{name}", value)
    with pytest.raises(InvalidRequest) as caught:
        settings.load()
    assert caught.value.message.startswith(f"PENSTOCK_{name}: ")
    assert said in caught.value.message
    assert len(caught.value.message) < 300


def test_values_of_several_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON."""
    monkeypatch.setenv("PENSTOCK_METRICS_BUCKETS_MS", "[1, 2.5]")
    monkeypatch.setenv("PENSTOCK_TRACE_RATIOS", '{"digits": 0.1}')
    read = settings.load()
    assert (read.metrics_buckets_ms, read.trace_ratios) == ((1.0, 2.5), {"digits": 0.1})


BROKERS = ["amqp://h", "amqps://u:p@h:5671/vhost", "amqp://u:p%40@[::1]:5672/%2F?heartbeat=5"]
NO_BROKERS = [
    "amqp://u:hunter2@h:notaport/",
    "amqp://u:hunter2@[::1",
    "hunter2",
    "amqp://",
    "amqp://u:hunter2@:5672/",
    "amqp://u:hunter2@h:99999/",
    "amqp://u:hunter2@h:0/",
    "http://u:hunter2@h/",
]


@pytest.mark.parametrize("url", BROKERS)
def test_a_broker_has_a_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PENSTOCK_AMQP_URL", url)
    assert settings.load().amqp_url == url


@pytest.mark.parametrize("url", NO_BROKERS)
def test_what_is_no_url_of_a_brokers_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """At the start, by the name of its setting: nobody tries it for ever."""
    monkeypatch.setenv("PENSTOCK_AMQP_URL", url)
    with pytest.raises(InvalidRequest, match=r"^PENSTOCK_AMQP_URL: it is no url of a broker's") as caught:
        settings.load()
    assert "hunter2" not in caught.value.message
    with pytest.raises(ValidationError) as direct:
        Settings(amqp_url=url)
    assert "hunter2" not in str(direct.value)


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


# --- a file ---


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_sets_what_the_environment_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Environment, then file, then default; each value with where it came from, a password without itself."""
    text = f'window = 5\nqueue_bound = 7\nsamples = false\nkeep_alive_s = 2\nmongo_url = "{SECRET_URL}"\n'
    file = written(tmp_path / "penstock.toml", text)
    monkeypatch.setenv("PENSTOCK_WINDOW", "3")
    config.config(file, json=True)
    printed = capsys.readouterr().out
    rows = {row["name"]: (row["value"], row["origin"]) for row in json.loads(printed)}
    assert rows["window"] == ("3", "PENSTOCK_WINDOW")
    assert rows["queue_bound"] == ("7", str(file))
    assert rows["samples"] == ("False", str(file))
    assert rows["mongo_url"] == ("mongodb://penstock:***@db.example/?***", str(file))
    assert rows["http_port"] == ("8080", "default")
    assert "hunter2" not in printed
    read = settings.load()
    assert (read.window, read.queue_bound, read.keep_alive_s, read.mongo_url) == (3, 7, 2.0, SECRET_URL)


def test_a_secret_file_comes_before_the_configuration_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable that names a file is the environment too."""
    monkeypatch.setenv(settings.CONFIG, str(written(tmp_path / "penstock.toml", 'amqp_url = "amqp://from-toml/"')))
    monkeypatch.setenv("PENSTOCK_AMQP_URL_FILE", str(written(tmp_path / "url", "amqp://from-file/\n")))
    assert settings.load().amqp_url == "amqp://from-file/"


def test_the_table_names_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For people too, also where the variable names it."""
    file = written(tmp_path / "penstock.toml", "window = 5\n")
    monkeypatch.setenv(settings.CONFIG, str(file))
    config.config()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PENSTOCK_WINDOW")]
    assert line.split()[1:3] == ["5", str(file)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("windows = 5\nqueue = 1\nwindow = 3\n", "no such setting: windows, queue"),
        ("[batching]\nwindow = 5\n", "no such setting: batching"),
        ("window = 0\n", "window: input should be greater than or equal to 1, not 0"),
        ("window = [1]\n", "window: input should be a valid integer"),
        ("window = \n", "cannot be read"),
        ("window = 1\nwindow = 2\n", "cannot be read"),
        ("\udcff", "cannot be read"),
        (None, "cannot be read: No such file or directory"),
        ('amqp_url = ["hunter2"]\n', "amqp_url: input should be a valid string"),
    ],
)
def test_a_file_that_will_not_do_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, said: str
) -> None:
    """With the lines that are wrong, in one sentence, without a secret."""
    file = tmp_path / "penstock.toml"
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(typer.Exit) as exit_:
        config.config(file)
    captured = capsys.readouterr()
    assert (exit_.value.exit_code, captured.out, captured.err.count("\n")) == (1, "", 1)
    assert str(file) in captured.err
    assert said in captured.err
    assert "hunter2" not in captured.err


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
