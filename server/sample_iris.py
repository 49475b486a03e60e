"""The sample model `iris`: a scikit-learn classifier of 150 flowers, written by skops."""

from __future__ import annotations

import json
from pathlib import Path

import skops.io
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEED = 20
WANTED = 0.9
"""Share of the held-out flowers that must be told right."""


def write(folder: Path) -> None:
    """Train and write `iris.skops` and its manifest `iris.json`. Raises RuntimeError where the model falls short."""
    data = load_iris()
    features, held, classes, held_classes = train_test_split(
        data.data, data.target, test_size=0.2, random_state=SEED, stratify=data.target
    )
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, classes)
    reached = float(model.score(held, held_classes))
    if reached < WANTED:
        raise RuntimeError(f"iris: {reached:.4f} of the held-out flowers are told right, {WANTED} are promised")
    (folder / "iris.skops").write_bytes(skops.io.dumps(model))
    labels = [str(name) for name in data.target_names]
    manifest = {
        "format": "sklearn",
        "signature": {
            "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 4]}],
            "outputs": [
                {"name": "predict", "datatype": "INT64", "shape": [-1], "labels": labels},
                {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3], "labels": labels},
            ],
        },
        "example": {
            "inputs": [{"name": "input", "datatype": "FP64", "shape": [1, 4], "data": held[0].tolist()}],
        },
        "tags": {"dataset": "scikit-learn iris", "held-out-accuracy": f"{reached:.4f}"},
    }
    (folder / "iris.json").write_text(json.dumps(manifest))
