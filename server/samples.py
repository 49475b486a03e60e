"""The two sample models of a first start: trained on real data in a process of its own, so that the server never
imports torch.

    python -m server.samples FOLDER     writes digits.onnx, iris.skops, their manifests, and digit.json

It says how far it is in lines of JSON on stdout: {"step": "training digits", "done": 3, "of": 12}.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from core.errors import Internal

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it, 0 to 1, that is."""

NAMES = ("digits", "iris")
REQUEST = "digit.json"
"""A held-out digit as a V2 request: copied into the home for the line to try."""


class Sample(NamedTuple):
    name: str
    artifact: Path
    manifest: Path
    """JSON, as a push sends it."""


class Samples(NamedTuple):
    models: tuple[Sample, ...]
    request: Path
    """A V2 request for `digits`, its true class in its id."""


async def train(out_dir: Path, progress: Progress) -> Samples:
    """Train both samples into `out_dir`, unless a complete set stands there already.

    Raises Internal with the last words of the training process where it fails.
    """
    found = samples_in(out_dir)
    if not all(map(os.path.isfile, _files(found))):
        _empty(out_dir)
        await _run(out_dir, progress)
    return found


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def samples_in(folder: Path) -> Samples:
    models = (
        Sample("digits", folder / "digits.onnx", folder / "digits.json"),
        Sample("iris", folder / "iris.skops", folder / "iris.json"),
    )
    return Samples(models, folder / REQUEST)


def copy_request(samples: Samples, home: Path) -> Path:
    """Put the request to try into the home, where the line to try finds it."""
    target = home / REQUEST
    shutil.copyfile(samples.request, target)
    return target


def _files(samples: Samples) -> list[Path]:
    return [path for model in samples.models for path in (model.artifact, model.manifest)] + [samples.request]


async def _run(out_dir: Path, progress: Progress) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server.samples",
        str(out_dir),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        errors = await _follow(process, progress)
        if await process.wait():
            raise Internal(f"the samples could not be trained: {_last_line(errors)}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _follow(process: asyncio.subprocess.Process, progress: Progress) -> bytes:
    """Report each line of progress; what the process wrote to stderr."""
    if process.stdout is None or process.stderr is None:
        raise Internal("the training process has no pipes")
    rest = asyncio.ensure_future(process.stderr.read())
    try:
        async for line in process.stdout:
            report = json.loads(line)
            progress(report["step"], report["done"] / report["of"])
        return await rest
    finally:
        rest.cancel()


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


# --- the training process -----------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Train both, each file put in its place only when all are whole."""
    _report("importing", 0, 1)
    from server import sample_digits, sample_iris

    building = folder / "building"
    building.mkdir(parents=True, exist_ok=True)
    sample_digits.write(building, lambda done, of: _report("training digits", done, of))
    _report("training iris", 0, 1)
    sample_iris.write(building)
    for path in sorted(building.iterdir()):
        path.replace(folder / path.name)
    building.rmdir()
    _report("training iris", 1, 1)


def _report(step: str, done: int, of: int) -> None:
    print(json.dumps({"step": step, "done": done, "of": of}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    main(Path(sys.argv[1]))
