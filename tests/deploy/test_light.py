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
def test_nothing_that_runs_models_is_imported(modules: str) -> None:
    """By none of a process's modules; their image does not hold it."""
    code = f"import sys, {modules}; print([name for name in {HEAVY!r} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == "[]"
