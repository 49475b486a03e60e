"""The client against the real thing: what the README promises a data scientist."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest
from penstock import errors
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression

from tests.client.conftest import Blocking
from tests.running import COMMAND, RunningServer

SOURCE = """
import numpy as np

class Scale:
    def load(self):
        self.factor = 3

    def predict(self, inputs):
        return {"y": inputs["x"] * self.factor, "n": np.arange(len(inputs["x"]))}
"""


@pytest.fixture(params=["sync", "async"])
def ps(request: pytest.FixtureRequest, running_server: RunningServer) -> Iterator[Any]:
    """A client of the running server, in both forms."""
    url, key = running_server.url, running_server.api_key
    if request.param == "sync":
        with penstock.connect(url, api_key=key) as client:
            yield client
    else:
        with asyncio.Runner() as runner:
            other = penstock.connect_async(url, api_key=key)
            yield Blocking(other, runner)
            runner.run(other.close())


def run(server: RunningServer, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, env=server.environment, cwd=server.home)


def test_the_samples_answer(ps: Any) -> None:
    """All digits and all flowers at once, though they are more than one batch."""
    digits = load_digits()
    found = ps.predict("digits", digits.images).argmax(axis=1)
    assert (found == digits.target).mean() > 0.97
    features, classes = load_iris(return_X_y=True)
    assert (ps.predict("iris", features) == classes).mean() > 0.9
    assert ps.predict("iris", features, outputs=["predict_proba"]).shape == (150, 3)


def test_an_estimator_pushed_predicts_as_before(ps: Any) -> None:
    """The signature is read off the example; what comes back is what the estimator says."""
    features, classes = load_iris(return_X_y=True)
    names = load_iris().target_names[classes]
    estimator = LogisticRegression(max_iter=500).fit(features, names)
    record = ps.push(estimator, "flowers", example=features[:1], tags={"stage": "test"})
    assert record["state"] == "READY"
    found = ps.predict("flowers", features, version=record["version"])
    assert [name.decode() for name in found] == estimator.predict(features).tolist()
    ps.delete("flowers")
    with pytest.raises(errors.NotFound):
        ps.model("flowers")


def test_a_class_pushed_predicts(ps: Any, tmp_path: Path) -> None:
    """Its outputs are found at the first load; an alias leads to it; unloaded it is unavailable, loaded it is back."""
    path = tmp_path / "models.py"
    path.write_text(SOURCE)
    record = ps.push(f"{path}:Scale", "scale", example={"x": np.ones((1, 2), "f4")}, alias="champion", allow_code=True)
    outputs = ps.infer("scale", [[1, 2]], version="champion").outputs
    assert outputs["y"].tolist() == [[3, 6]]
    ps.unload("scale", record["version"])
    with pytest.raises(errors.Unavailable):
        ps.predict("scale", [[1, 2]])
    ps.load("scale", record["version"])
    assert ps.predict("scale", [[1, 2]])["y"].tolist() == [[3, 6]]
    ps.unalias("scale", "champion")
    ps.delete("scale")


def test_a_key_sees_what_it_may(ps: Any, running_server: RunningServer) -> None:
    """Other models do not exist for it, its role does not permit pushes, and revoked it is worth nothing."""
    made = ps.keys.create("reader", models=["iris"], expires_in_s=600)
    with penstock.connect(running_server.url, api_key=made["key"]) as limited:
        assert [model["name"] for model in limited.models()] == ["iris"]
        with pytest.raises(errors.NotFound):
            limited.predict("digits", np.zeros((1, 8, 8)))
        with pytest.raises(errors.PermissionDenied):
            limited.push(LogisticRegression().fit([[0], [1]], [0, 1]), "iris", example=[[0.0]])
        ps.keys.revoke(made["id"])
        with pytest.raises(errors.Unauthenticated):
            ask_until_refused(limited)


def ask_until_refused(ps: penstock.Client) -> None:
    """A revoked key may work for five seconds more."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        ps.models()


def test_an_upload_refused_halfway_says_why(ps: Any, running_server: RunningServer, tmp_path: Path) -> None:
    """A large file for a key that may not push: the refusal is read, not a broken connection."""
    path = tmp_path / "large.skops"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    made = ps.keys.create("reader")
    with (
        penstock.connect(running_server.url, api_key=made["key"]) as limited,
        pytest.raises(errors.PermissionDenied),
    ):
        limited.push(path, "large", example=[[0.0]])


def test_the_line_to_try(running_server: RunningServer) -> None:
    """A held-out digit is told right, and drawn."""
    found = run(running_server, "predict", "digits", "--input", "digit.json")
    assert (found.returncode, found.stderr) == (0, "")
    truth = json.loads((running_server.home / "digit.json").read_text())["id"][-1]
    assert f"probabilities → {truth}" in found.stdout
    assert "██" in found.stdout or "@@" in found.stdout


def test_the_command_lists_and_fails_as_it_should(running_server: RunningServer) -> None:
    """JSON for programs; exit 1 and a sentence for what fails."""
    listed = run(running_server, "models", "list", "--json")
    assert {"digits", "iris"} <= {model["name"] for model in json.loads(listed.stdout)}
    failed = run(running_server, "models", "show", "nope")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == "penstock: unknown model 'nope'\n"
