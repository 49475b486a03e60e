"""Serving an estimator must not cost torch's memory."""

from __future__ import annotations

import subprocess
import sys


def test_skops_comes_without_torch() -> None:
    """The scikit-learn runtime imports neither torch nor its kin, though they are installed here."""
    program = "import sys, workers.runtimes.sklearn; print(sorted({'torch', 'cupy', 'dask'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
