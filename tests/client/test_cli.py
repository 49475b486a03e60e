"""The `penstock` command: its help, its output, its exit codes."""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from penstock import cli
from penstock.commands.keys import seconds_of

from tests.client.fake import Arrays, FakeModel, FakeServer, Scripted, model_record, version_record

COMMANDS: dict[str, tuple[str, ...]] = {
    "": (
        "push",
        "models",
        "predict",
        "deployments",
        "status",
        "keys",
        "version",
        "up",
        "config",
        "services",
        "--version",
        "PENSTOCK_GRPC",
    ),
    "push": (
        "PATH[:Class]",
        "--name",
        "--example",
        "--signature",
        "--max-batch",
        "--alias",
        "--allow-code",
        "--architecture",
        "--tag",
        "--deadline-ms",
        "--queue-bound",
        "--warmup",
        "--json",
    ),
    "models": ("list", "show", "alias", "unalias", "load", "unload", "delete", "tag", "architectures"),
    "models list": ("--json",),
    "models show": ("MODEL", "--version", "--json"),
    "models alias": ("MODEL", "ALIAS", "VERSION"),
    "models unalias": ("MODEL", "ALIAS"),
    "models load": ("MODEL", "--version"),
    "models unload": ("MODEL", "--version"),
    "models delete": ("MODEL", "--version", "--yes"),
    "models tag": ("MODEL", "VERSION", "NAME=VALUE"),
    "models architectures": ("--json",),
    "predict": ("MODEL", "--input", "--version", "--draw", "--no-draw", "--timeout", "--json", ".npz", '{"inputs"'),
    "deployments": ("list", "show", "set", "reset"),
    "deployments list": ("--json",),
    "deployments show": ("MODEL", "--json"),
    "deployments set": (
        "MODEL",
        "--replicas",
        "--max-replicas",
        "--cpus",
        "--gpus",
        "--accelerator",
        "--json",
        "stays as it is",
    ),
    "deployments reset": ("MODEL", "--json"),
    "status": ("--watch", "--every", "--json"),
    "keys": ("create", "list", "revoke"),
    "keys create": ("NAME", "--role", "--owner", "default: its name", "--model", "--grant", "--expires", "--json"),
    "keys list": ("--json",),
    "keys revoke": ("ID",),
    "version": ("--json",),
    "config": ("--config", "PENSTOCK_CONFIG", "--json"),
    "control": ("--config", "/api/v1"),
    "services": ("up", "down", "status", "env", "PENSTOCK_AMQP_URL", "RAY_ADDRESS"),
    "services up": ("--only",),
    "services down": ("--only",),
    "services status": ("--only", "--json"),
    "services env": ("--only", "--json"),
}


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: str, stdin: bytes = b"") -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["penstock", *words])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = self._capsys.readouterr()
        return Outcome(int(exit_.value.code or 0), captured.out, captured.err)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(monkeypatch, capsys)


@pytest.fixture
def configured(home: Path, server: FakeServer) -> FakeServer:
    """A client.toml that leads to the fake server, with a digits model in it."""
    (home / "client.toml").write_text(f'url = "{server.url}"\ncontrol = "{server.url}"\napi_key = "{server.key}"\n')

    def run(inputs: Arrays) -> Arrays:
        rows = len(inputs["image"])
        return {"probabilities": np.tile(np.array([[0.25, 0.75]], "f4"), (rows, 1))}

    server.models["digits"] = FakeModel([{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}], run)
    return server


# --- help and usage ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_everything(shell: Shell, command: str) -> None:
    """Each command and option that scripts rely on."""
    found = shell(*command.split(), "--help")
    assert found.code == 0
    assert [word for word in COMMANDS[command] if word not in found.out] == []


@pytest.mark.parametrize(
    "line",
    [
        "nope",
        "models nope",
        "push m.onnx",
        "push m.onnx --name m --max-batch -1",
        "push m.onnx --name m --max-batch x",
        "push m.onnx --name m --warmup 1,x",
        "push m.onnx --name m --tag x",
        "push m.onnx --name m --nope",
        "predict digits",
        "models tag m 1 x",
        "deployments set digits",
        "deployments set digits --replicas 0",
        "deployments set digits --replicas two",
        "deployments set --replicas 2",
        "status --every 0",
        "keys create k --expires soon",
        "keys create k --role boss",
        "keys create",
        "config --nope",
    ],
)
def test_wrong_usage_is_2(shell: Shell, configured: FakeServer, line: str) -> None:
    """Said on stderr, before anything is sent."""
    found = shell(*line.split())
    assert (found.code, found.out) == (2, "")
    assert "Error:" in found.err
    assert configured.requests == []


def test_nothing_to_do_shows_the_help(shell: Shell) -> None:
    """A bare `penstock` is a question."""
    found = shell()
    assert "Commands:" in found.out + found.err


# --- failures ---


def sentence(found: Outcome) -> str:
    """What a failed command says: one line on stderr, nothing else."""
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("penstock: ")
    assert found.err.count("\n") == 1
    return found.err


def test_no_server_configured(shell: Shell) -> None:
    """One sentence that says what to set."""
    assert "PENSTOCK_URL" in sentence(shell("models", "list"))


def test_a_refusal_is_one_sentence(shell: Shell, configured: FakeServer) -> None:
    """The server's words, with the error id where it gave one."""
    configured.answers("GET /api/v1/models", Scripted(500, {"error": "the model failed", "error_id": "e1"}))
    assert sentence(shell("models", "list")) == "penstock: the model failed (error id e1)\n"


@pytest.mark.parametrize(
    "line",
    [
        "push {file} --name {wrong}",
        "predict {wrong} --input {file}",
        "models show {wrong}",
        "models alias {wrong} champion 1",
        "models unalias {wrong} champion",
        "models load {wrong}",
        "models unload {wrong}",
        "models delete {wrong} --yes",
        "models tag {wrong} 1 a=b",
    ],
)
def test_a_name_that_no_model_can_have(shell: Shell, configured: FakeServer, tmp_path: Path, line: str) -> None:
    """Refused by every command that takes one, before anything is sent."""
    file = tmp_path / "m.json" if line.startswith("predict") else tmp_path / "m.onnx"
    file.write_text("[[1]]")
    for wrong in ("../x", "..", "stats"):
        said = sentence(shell(*line.format(file=file, wrong=wrong).split()))
        assert f"'{wrong}' is no model name" in said
    assert configured.requests == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("models alias m champion 0", "'0' is no version"),
        ("models alias m 7 1", "'7' is no alias"),
        ("models unalias m ..", "'..' is no alias"),
        ("models delete m --version ..", "'..' is no version"),
        ("models load m --version a/b", "'a/b' is no version"),
        ("models tag m ../.. a=b", "'../..' is no version"),
    ],
)
def test_what_can_be_no_version_and_no_alias(shell: Shell, configured: FakeServer, line: str, said: str) -> None:
    """Never sent: `..` would lead to the whole model."""
    assert said in sentence(shell(*line.split()))
    assert configured.requests == []


def test_a_file_that_is_not_there(shell: Shell, configured: FakeServer) -> None:
    """For pushes, signatures and inputs alike."""
    for line in ("push m.onnx --name m", "push m.onnx --name m --signature s.json", "predict digits --input no.json"):
        assert "there is no file" in sentence(shell(*line.split()))


def test_a_defect_shows_no_traceback(shell: Shell, configured: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is asked for."""
    configured.answers("GET /api/v1/models", Scripted(200, {"models": [{}]}))
    assert "KeyError" in sentence(shell("models", "list"))
    monkeypatch.setenv("PENSTOCK_DEBUG", "1")
    configured.answers("GET /api/v1/models", Scripted(200, {"models": [{}]}))
    monkeypatch.setattr(sys, "argv", ["penstock", "models", "list"])
    with pytest.raises(KeyError):
        cli.main()


# --- lists and records ---


def test_lists_for_programs(shell: Shell, configured: FakeServer) -> None:
    """`--json` is JSON on stdout and nothing else, whatever is listed or shown."""
    assert shell("models", "list", "--json").json == [model_record()]
    assert shell("models", "show", "digits", "--json").json == model_record()
    assert shell("models", "show", "digits", "--version", "1", "--json").json == version_record(1)
    assert shell("models", "architectures", "--json").json[0]["name"] == "mlp"
    assert shell("keys", "list", "--json").json[0]["id"] == "k1"
    assert shell("version", "--json").json["server"] == "9.9"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("models list", ("MODEL", "KEPT", "digits", "READY", "onnx_onnxv1", "champion → 1", "team")),
        ("models show digits", ("digits", "champion → 1", "FP32 [-1, 8, 8]", "labels no, yes", "stage", "1.2 kB")),
        ("models show digits --version 1", ("READY", "abab", "32", "30000 ms", "2048 waiting", "batches of 1, 8")),
        ("models show digits --version champion", ("READY", "abab", "32")),
        ("models architectures", ("mlp", "layers")),
        ("deployments list", ("digits", "1 to 4", "0.5", "0.25", "L4")),
        ("deployments show digits", ("digits: 1 to 4 replicas of each", "0.5 CPU", "0.25 GPU L4 each")),
        ("deployments set digits --replicas 2", ("digits: 2 to 4 replicas",)),
        ("deployments reset digits", ("digits: 1 to 4 replicas",)),
        ("status", ("1 model, 1 version, 1 gateway", "digits", "2 (champion)", "1 of 1 to 4", "1.5 s")),
        (
            "status",
            ("h1", "cuda:0", "1 ready", "2 ms", "4 ms", "6 ms", "50%", "gateway-1", "40 (2 behind)", "digits/2"),
        ),
        ("keys list", ("k1", "ci", "predict", "never", "live")),
        ("version", ("penstock 0.1.0", "server: penstock 9.9")),
    ],
)
def test_lists_for_people(shell: Shell, configured: FakeServer, line: str, words: tuple[str, ...]) -> None:
    """A table that nothing is cut off of, also into a pipe."""
    found = shell(*line.split())
    assert found.code == 0
    assert [word for word in words if word not in found.out] == []


def test_empty_lists_say_so(shell: Shell, configured: FakeServer) -> None:
    """And what to do about it."""
    configured.answers("GET /api/v1/models", Scripted(200, {"models": []}))
    assert "penstock push" in shell("models", "list").out


def test_a_client_without_a_server_has_a_version(shell: Shell) -> None:
    """`version` and `--version` answer anyway."""
    assert shell("version").code == 0
    assert shell("--version").out == "penstock 0.1.0\n"


# --- changes ---


@pytest.mark.parametrize(
    ("line", "request_line", "body"),
    [
        ("models alias m champion 2", "PUT /api/v1/models/m/aliases/champion", {"version": 2}),
        ("models alias m blue champion", "PUT /api/v1/models/m/aliases/blue", {"version": "champion"}),
        ("models load m --version champion", "POST /api/v1/models/m/load", {"version": "champion"}),
        ("models unload m --version champion", "POST /api/v1/models/m/unload", {"version": "champion"}),
        ("models delete m --version champion", "DELETE /api/v1/models/m/versions/champion", None),
        ("models tag m champion a=b", "PUT /api/v1/models/m/versions/champion/tags", {"a": "b"}),
        ("models unalias m champion", "DELETE /api/v1/models/m/aliases/champion", None),
        ("models load m --version 2", "POST /api/v1/models/m/load", {"version": 2}),
        ("models unload m", "POST /api/v1/models/m/unload", {}),
        ("models delete m --version 2", "DELETE /api/v1/models/m/versions/2", None),
        ("models delete m --yes", "DELETE /api/v1/models/m", None),
        ("models tag m 2 a=b c=d=e", "PUT /api/v1/models/m/versions/2/tags", {"a": "b", "c": "d=e"}),
        ("keys revoke k1", "DELETE /api/v1/keys/k1", None),
    ],
)
def test_changes(shell: Shell, configured: FakeServer, line: str, request_line: str, body: Any) -> None:
    """One request each, and a line that says what was done."""
    found = shell(*line.split())
    assert (found.code, found.err) == (0, "")
    assert found.out.count("\n") == 1
    (request,) = configured.requests
    assert f"{request.method} {request.path}" == request_line
    assert (request.json if request.body else None) == body


def test_a_new_key_is_all_that_is_printed(shell: Shell, configured: FakeServer) -> None:
    """So that a script can keep it; as JSON with its record."""
    line = "keys create ci --role deploy --owner team --model churn* --model iris --grant code --expires 30d"
    assert shell(*line.split()).out == "psk_new_secret\n"
    assert configured.requests[-1].json == {
        "name": "ci",
        "role": "deploy",
        "owner": "team",
        "models": ["churn*", "iris"],
        "grants": ["code"],
        "expires_in_s": 30 * 86400,
    }
    assert shell("keys", "create", "ci", "--json").json["key"] == "psk_new_secret"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("1.5h", 5400), ("30d", 2592000), ("1w", 604800)]
)
def test_times(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert seconds_of(text) == seconds


# --- pushes ---


def test_push(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """Every option reaches the manifest; the version number is what is printed."""
    (tmp_path / "m.py").write_text("class M:\n    def predict(self, inputs):\n        return inputs\n")
    (tmp_path / "e.json").write_text('{"x": [[1.0, 2.0]]}')
    (tmp_path / "s.json").write_text('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}')
    line = f"push {tmp_path}/m.py:M --name m --example {tmp_path}/e.json --signature {tmp_path}/s.json --max-batch 8"
    line += " --alias champion --allow-code --tag a=b --deadline-ms 100 --queue-bound 7 --warmup 1,8"
    found = shell(*line.split())
    assert (found.code, found.out, found.err) == (0, "1\n", "")
    (manifest, _) = configured.pushed[0]
    assert manifest == {
        "format": "python",
        "entry": "M",
        "max_batch": 8,
        "alias": "champion",
        "default_deadline_ms": 100,
        "queue_bound": 7,
        "warmup": [1, 8],
        "tags": {"a": "b"},
        "allow_code": True,
        "signature": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []},
        "example": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]},
    }
    assert shell(*line.split(), "--json").json["version"] == 2


def test_push_of_weights(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """The architecture is the entry."""
    (tmp_path / "w.safetensors").write_bytes(b"x")
    found = shell(*f"push {tmp_path}/w.safetensors --name m --architecture mlp".split())
    assert found.code == 0
    assert configured.pushed[0][0] == {"format": "torch", "entry": "mlp"}


# --- predictions ---


def digit(path: Path, rows: int = 1) -> str:
    tensor = {"name": "image", "datatype": "FP32", "shape": [rows, 8, 8], "data": [16.0] * (64 * rows)}
    path.write_text(json.dumps({"id": "held-out digit 7", "inputs": [tensor]}))
    return str(path)


def test_predict_shows_the_answer_beside_the_image(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """The best class by its label, the runners-up, the request's id, and the digit in characters."""
    found = shell("predict", "digits", "--input", digit(tmp_path / "d.json"))
    assert (found.code, found.err) == (0, "")
    assert [
        word for word in ("digits, version 1", "held-out digit 7", "yes", "75.0%", "25.0%") if word not in found.out
    ] == []
    assert len(found.out.splitlines()) == 10
    assert "│" in found.out or "|" in found.out


def test_predict_draws_when_told(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """`--no-draw` leaves the image out."""
    found = shell("predict", "digits", "--input", digit(tmp_path / "d.json"), "--no-draw")
    assert "│" not in found.out
    assert "yes" in found.out


def test_predict_without_labels(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """Where the control API cannot be asked, the numbers are the answer."""
    configured.answers("GET /api/v1/models/digits/versions/1", Scripted(403, {"error": "no"}))
    found = shell("predict", "digits", "--input", digit(tmp_path / "d.json"))
    assert found.code == 0
    assert "[[0.25, 0.75]]" in found.out


def test_predict_of_many_rows(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """A label each, the first twenty of them."""
    found = shell("predict", "digits", "--input", digit(tmp_path / "d.json", 25))
    assert found.out.count("yes") == 20
    assert "and 5 more" in found.out


def test_predict_for_programs(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """A V2 response in JSON, with the label of each row; NaN is null."""
    configured.models["digits"].run = lambda inputs: {
        "probabilities": np.array([[0.1, 0.9]], "f8"),
        "other": np.array([np.nan, 1.0]),
        "text": np.array([b"a", b"\xff"], object),
    }
    found = shell("predict", "digits", "--input", digit(tmp_path / "d.json"), "--json").json
    assert found["model_name"] == "digits"
    assert found["outputs"][0] == {
        "name": "probabilities",
        "datatype": "FP64",
        "shape": [1, 2],
        "data": [0.1, 0.9],
        "labels": ["yes"],
    }
    assert found["outputs"][1]["data"] == [None, 1.0]
    assert found["outputs"][2]["data"] == ["a", "\\xff"]


def test_predict_reads_stdin(shell: Shell, configured: FakeServer) -> None:
    """`--input -`."""
    found = shell(
        "predict", "digits", "--input", "-", "--json", stdin=json.dumps(np.zeros((1, 8, 8)).tolist()).encode()
    )
    assert found.json["outputs"][0]["labels"] == ["yes"]


def test_predict_of_a_class_number(shell: Shell, configured: FakeServer, tmp_path: Path) -> None:
    """An integer output with labels is the number of a class."""
    configured.models["digits"].run = lambda inputs: {"probabilities": np.array([1])}
    found = shell("predict", "digits", "--input", digit(tmp_path / "d.json"))
    assert "yes" in found.out


# --- commands of the server ---


def test_server_commands_name_their_distribution(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, `penstock up` says which one brings it."""
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    assert "penstock-server" in sentence(shell("up"))


def test_server_commands_are_handed_their_arguments(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options, help and exit codes are those of the function behind the entry point, loaded only then."""
    entry = EntryPoint("config", f"{__name__}:greet", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [entry])
    assert shell("config", "you", "--loud").out == "HELLO YOU\n"
    assert "--loud" in shell("config", "--help").out
    assert shell("config").code == 2
    assert shell("config", "nobody").code == 1


def greet(name: str, loud: bool = False) -> None:
    import typer

    if name == "nobody":
        raise typer.Exit(1)
    text = f"hello {name}"
    typer.echo(text.upper() if loud else text)
