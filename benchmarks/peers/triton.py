"""Triton's own server, out of pytriton's wheel, with a batched model in its Python backend."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers import asks
from benchmarks.peers.asks import CORNER, PRODUCT
from benchmarks.peers.base import MAX_BATCH, MAX_IMAGES, SERVED, Peer, Program, Served, Site, foreign

SHAPES = {PRODUCT: (MAX_BATCH, "4", "4"), CORNER: (MAX_IMAGES, "3, 224, 224", "1, 1, 4")}
CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input [{{ name: "x" data_type: TYPE_FP32 dims: [{row}] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [{answer}] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
dynamic_batching {{}}
"""
PATHS = "import sysconfig, sys; print(sysconfig.get_path('purelib'), '%d.%d' % sys.version_info[:2])"


def program(site: Site) -> Program:
    """The wheel keeps the backend's stubs apart, one for each Python: ours has to lie beside the backend itself."""
    told = subprocess.run([site.python, "-c", PATHS], capture_output=True, text=True, check=True).stdout.split()
    packages, version = Path(told[0]), told[1]
    distribution = packages / "pytriton" / "tritonserver"
    stub = distribution / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise RuntimeError(f"its wheel has no Python backend for Python {version}")
    shutil.copytree(distribution / "backends", site.folder / "backends")
    shutil.copy(stub, site.folder / "backends" / "python")
    for model in SHAPES:
        _model(site.folder / "models" / model)
    arguments = {
        "model-repository": site.folder / "models",
        "backend-directory": site.folder / "backends",
        "http-address": "127.0.0.1",
        "http-port": site.port,
        "grpc-address": "127.0.0.1",
        "grpc-port": site.grpc_port,
        "allow-metrics": "false",
    }
    command = [str(distribution / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in arguments.items())]
    return Program(command, {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs")})


def _model(folder: Path) -> None:
    max_batch, row, answer = SHAPES[folder.name]
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(CONFIG.format(name=folder.name, max_batch=max_batch, row=row, answer=answer))
    shutil.copy(SERVED / "triton_model.py", folder / "1" / "model.py")


def told(site: Site) -> Served:
    rest = {PRODUCT: asks.v2_json(site.base, PRODUCT), CORNER: asks.v2_binary(site.base, CORNER)}
    return Served([], rest, site.grpc())


PEER = Peer(
    name="triton",
    title="Triton 2.51",
    settings="its own server, Python backend, one instance, dynamic_batching {} (no delay), "
    f"max_batch_size {MAX_BATCH} (images {MAX_IMAGES}), metrics off",
    serve=functools.partial(foreign, "triton", program, told),
)
