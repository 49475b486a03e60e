"""A gateway and a control plane are deployed without the packages that run models."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnxruntime", "sklearn", "ray", "onnx", "skops", "safetensors", "psutil")
LATE = "repository.mongo, repository.gridfs"
"""What a process imports only once it knows where its repository is."""


@pytest.mark.parametrize(
    "modules",
    [
        f"server.gateway, server.siblings, server.gateway_process, {LATE}",
        f"server.control, server.control_plane, {LATE}",
        f"server.setup, {LATE}",
    ],
)
def test_nothing_that_runs_models_is_needed(modules: str) -> None:
    """By none of a process's modules; their image does not hold it. A library may look for one, and do without."""
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import {modules}; print('imported')"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (told.stdout.strip(), told.stderr) == ("imported", "")
