"""The sample models: real data, a promised accuracy, files that the server can push."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import skops.io
from sklearn.datasets import load_iris

from core.errors import Internal
from core.settings import Settings
from repository.manifest import Manifest, check, max_batch_of
from server import sample_digits, samples


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def trained(home: Path, steps: list[tuple[str, float]]) -> samples.Samples:
    import asyncio

    return asyncio.run(samples.train(home / "samples", lambda step, share: steps.append((step, share))))


def test_digits_are_told_right(trained: samples.Samples) -> None:
    """At least 97 % of a held-out fifth, by onnxruntime, in batches; what the tag says is what is measured."""
    split = sample_digits.held_out()
    assert len(split.held_images) == 360
    session = onnxruntime.InferenceSession(trained.models[0].artifact)
    (probabilities,) = session.run(["probabilities"], {"image": split.held_images})
    reached = float((probabilities.argmax(axis=1) == split.held_classes).mean())
    assert reached >= 0.97
    tags = json.loads(trained.models[0].manifest.read_text())["tags"]
    assert abs(float(tags["held-out-accuracy"]) - reached) < 0.003
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-4)


def test_nothing_held_out_was_trained_on() -> None:
    """The fifth is of every class, and disjoint from the rest."""
    split = sample_digits.held_out()
    assert len(split.images) + len(split.held_images) == 1797
    counts = np.bincount(split.held_classes)
    assert counts.min() >= 34
    seen = {image.tobytes() for image in split.images}
    assert sum(image.tobytes() in seen for image in split.held_images) == 0


def test_iris_is_told_right(trained: samples.Samples) -> None:
    """The artifact is skops that needs no trust, and answers for all 150 flowers."""
    path = trained.models[1].artifact
    assert skops.io.get_untrusted_types(file=path) == []
    data = load_iris()
    assert skops.io.load(path).score(data.data, data.target) > 0.9


def test_manifests_are_those_of_a_push(trained: samples.Samples) -> None:
    """Checked as every push is; both batch."""
    settings = Settings()
    for sample in trained.models:
        manifest = msgspec.json.decode(sample.manifest.read_bytes(), type=Manifest)
        check(manifest, settings)
        assert max_batch_of(manifest, settings) == settings.default_max_batch


def test_the_request_to_try_is_a_held_out_digit(trained: samples.Samples, home: Path) -> None:
    """A V2 request for one image that was not trained on; its id tells the true class, and the model agrees."""
    path = samples.copy_request(trained, home)
    assert path == home / "digit.json"
    request = json.loads(path.read_text())
    image = np.array(request["inputs"][0]["data"], np.float32).reshape(request["inputs"][0]["shape"])
    split = sample_digits.held_out()
    (place,) = [place for place, other in enumerate(split.held_images) if (other == image[0]).all()]
    assert request["id"].endswith(f"a {split.held_classes[place]}")
    session = onnxruntime.InferenceSession(trained.models[0].artifact)
    assert session.run(None, {"image": image})[0].argmax() == split.held_classes[place]


def test_progress_is_told(trained: samples.Samples, steps: list[tuple[str, float]]) -> None:
    """Each step by its name, each share between none and all."""
    assert {step for step, _ in steps} == {"importing", "training digits", "training iris"}
    assert all(0 <= share <= 1 for _, share in steps)
    assert steps[-1] == ("training iris", 1.0)


async def test_samples_are_trained_once(trained: samples.Samples, home: Path) -> None:
    """A complete set is used as it is."""
    before = trained.models[0].artifact.stat().st_mtime_ns

    def no_progress(step: str, share: float) -> None:
        raise AssertionError(step)

    assert await samples.train(home / "samples", no_progress) == trained
    assert trained.models[0].artifact.stat().st_mtime_ns == before


async def test_a_training_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its last words, and no half of a set left to be taken for one."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sklearn.py").write_text("raise ImportError('scikit-learn is not here')")
    with pytest.raises(Internal, match="scikit-learn is not here"):
        await samples.train(tmp_path / "samples", lambda step, share: None)
    assert not any(path.is_file() for path in (tmp_path / "samples").iterdir())


def test_the_serving_process_imports_no_torch() -> None:
    """The module that `up` uses is light."""
    code = "import sys, server.samples; print([name for name in ('torch', 'sklearn', 'numpy') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert out.stdout.strip() == "[]"
