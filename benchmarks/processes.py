"""The programs that are measured, each in a process of its own, and what they cost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import models
from loadtests.processes import ROOT, Echo, cpu_seconds, echo, family
from tests.running import COMMAND, RunningServer, running

__all__ = ["ROOT", "Echo", "cpu_seconds", "echo", "penstock", "push", "push_class", "rss_bytes"]


@contextlib.contextmanager
def penstock(*words: str, **settings: str) -> Iterator[RunningServer]:
    """`penstock up WORDS`: an embedded server, or the production shape; without the sample models unless they are
    asked for."""
    settings = {"samples": "false", "log_level": "warning"} | settings
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        running(Path(folder) / "home", *words, **settings) as server,
    ):
        yield server


def push(server: RunningServer, artifact: str, name: str, *options: str) -> str:
    """`penstock push`, until the version is ready; the model's infer path. Raises RuntimeError with what it said."""
    done = subprocess.run(
        [COMMAND, "push", artifact, "--name", name, *options], env=server.environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"push of {name}: {done.stdout}{done.stderr}")
    return f"{server.url}/v2/models/{name}/infer"


def push_class(server: RunningServer, folder: Path, source: str, name: str, max_batch: int) -> str:
    """`push` of the one class in `source`, which takes and gives FP32[N,4]; its files are put into `folder`."""
    (folder / f"{name}.py").write_text(source)
    (folder / "signature.json").write_text(json.dumps(models.VECTOR_SIGNATURE))
    artifact = f"{folder / f'{name}.py'}:{source.partition('class ')[2].partition(':')[0]}"
    options = ("--signature", str(folder / "signature.json"), "--max-batch", str(max_batch), "--allow-code")
    return push(server, artifact, name, *options)


def rss_bytes(pid: int) -> list[int]:
    """Resident memory of a process, then of each of its children."""
    return [process.memory_info().rss for process in family(pid)]
