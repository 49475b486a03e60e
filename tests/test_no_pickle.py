"""Nothing of ours unpickles: every call that would execute what it reads is looked for in every source file.

One place is allowed, the loader of exported programs, which only ever runs in a child process.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "core",
    "repository",
    "workers",
    "gateway",
    "control",
    "server",
    "client",
    "benchmarks",
    "loadtests",
    "docs",
)

MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "pandas"}
    | {"multiprocessing", "xmlrpc", "aio_pika.patterns"}
)
"""Modules that unpickle, or do it underneath."""
CALLS = frozenset(
    {"torch.load", "torch.jit.load", "torch.export.load", "torch.package.PackageImporter", "yaml.load"}
    | {"yaml.unsafe_load", "yaml.full_load", "numpy.lib.format.read_array", "onnx.reference.ReferenceEvaluator"}
)
KEYWORDS = frozenset({"allow_pickle", "weights_only"})
ALLOWED = {
    ("workers/runtimes/torch.py", "torch.export.load"),
    ("benchmarks/load.py", "multiprocessing"),  # a load generator talks to its own forked workers
}


def found(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a source that would unpickle, by whatever name it was imported."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield from ((node.lineno, alias.name) for _ in [0] if _banned(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = whole
                if _banned(whole) or whole in CALLS:
                    yield node.lineno, whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            dotted = _dotted(node, names)
            if dotted in CALLS:
                yield node.lineno, dotted
        elif isinstance(node, ast.Call):
            yield from _dynamic(node, names)
            yield from (
                (node.lineno, k.arg)
                for k in node.keywords
                if k.arg in KEYWORDS
                and not (isinstance(k.value, ast.Constant) and k.value.value is (k.arg == "weights_only"))
            )


def _banned(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in MODULES)


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    head = names.get(node.id, node.id)
    return ".".join([{"np": "numpy"}.get(head, head), *reversed(parts)])


def _dynamic(node: ast.Call, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """`__import__("pickle")`, `import_module("pickle")`."""
    if _dotted(node.func, names).split(".")[-1] in ("__import__", "import_module") and node.args:
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and _banned(first.value):
            yield node.lineno, first.value


def breaches(path: str, source: str) -> list[str]:
    return [f"{path}:{line} {what}" for line, what in found(source) if (path, what) not in ALLOWED]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_source_of_ours_unpickles(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert [b for file in files for b in breaches(str(file.relative_to(ROOT)), file.read_text())] == []


def test_the_one_allowed_place_is_where_we_think() -> None:
    """The list holds nothing that is no longer there."""
    source = (ROOT / "workers/runtimes/torch.py").read_text()
    assert "torch.export.load" in {what for _, what in found(source)}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("workers/worker.py", "import pickle\nx = pickle.loads(b'')"),
        ("workers/worker.py", "from pickle import loads"),
        ("workers/worker.py", "import cloudpickle as harmless"),
        ("workers/worker.py", "def f():\n    import marshal"),
        ("workers/worker.py", "__import__('pickle').loads(b'')"),
        ("workers/worker.py", "import importlib\nimportlib.import_module('dill')"),
        ("workers/worker.py", "import joblib\njoblib.load('x')"),
        ("workers/worker.py", "import torch\ntorch.load('x')"),
        ("workers/worker.py", "import torch as t\nt.load('x', weights_only=True)"),
        ("workers/worker.py", "from torch import load"),
        ("workers/worker.py", "import torch\nloader = torch.jit.load"),
        ("workers/worker.py", "import torch\ntorch.export.load('x')"),
        ("workers/runtimes/torch.py", "import torch\ntorch.load('x')"),
        ("workers/worker.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
        ("workers/worker.py", "import numpy\nnumpy.load('x', allow_pickle=flag)"),
        ("workers/worker.py", "import yaml\nyaml.load('x')"),
        ("workers/worker.py", "import pandas"),
        ("gateway/transports/amqp.py", "from aio_pika.patterns import RPC"),
        ("server/up.py", "from multiprocessing import Pipe"),
    ],
)
def test_the_checker_sees_each_of_them(path: str, source: str) -> None:
    assert breaches(path, source)


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.loads('1')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from safetensors.torch import load_file\nload_file('x')",
        "load = 3\nload",
        "class T:\n    def load(self): ...\nT().load()",
    ],
)
def test_the_checker_leaves_the_innocent_alone(source: str) -> None:
    assert breaches("workers/worker.py", source) == []


def test_the_allowed_place_is_allowed() -> None:
    assert breaches("workers/runtimes/torch.py", "import torch\ntorch.export.load('x')") == []
