"""Who may import whom: the allowed arrows as a table, held against every import statement of the tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("core", "repository", "workers", "gateway", "control", "server", "penstock", "benchmarks", "loadtests", "tests")
ARROWS: dict[str, tuple[str, ...]] = {
    "core": (),
    "repository": ("core",),
    "workers": ("core", "repository"),
    "gateway": ("core", "repository", "workers.messages", "workers.conformity"),
    "control": ("core", "repository"),
    "server": ("core", "repository", "workers", "gateway", "control", "penstock"),
    "penstock": (),
    "loadtests": ("penstock",),
    "benchmarks": ("core", "repository", "workers", "gateway", "control", "penstock", "loadtests", "tests"),
}
MORE_ARROWS: dict[str, tuple[str, ...]] = {
    **{f"gateway/transports/{name}.py": ("workers",) for name in ("inproc", "process", "connect")},
    "loadtests/handicapped.py": ("gateway", "workers"),
}
"""Single files: hosts of workers; and what makes a server worse from outside, so that it needs no switch for that."""

LOCUST = ("locust", "gevent")


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """(line, module or module.name) of each import; `from a import b` counts as a.b, for b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def breaches(path: str, source: str) -> list[str]:
    """Imports of our own packages that the table does not allow to the file at `path` (relative to the root)."""
    package = path.removeprefix("client/").split("/")[0]
    allowed = (package, *ARROWS[package], *MORE_ARROWS.get(path, ()))
    return [
        f"{path}:{line} imports {module}"
        for line, module in imported(source)
        if within(module, OURS) and not within(module, allowed)
    ]


def _folder(package: str) -> Path:
    return ROOT / "client" / package if package == "penstock" else ROOT / package


@pytest.mark.parametrize("package", ARROWS)
def test_every_import_follows_an_arrow(package: str) -> None:
    """No package imports one that the table gives it no arrow to."""
    files = sorted(_folder(package).rglob("*.py"))
    assert [breach for file in files for breach in breaches(str(file.relative_to(ROOT)), file.read_text())] == []


def test_only_load_tests_import_locust() -> None:
    """Nor gevent, which patches Python: the one set of packages that no server and no client has."""
    files = [file for package in OURS if package != "loadtests" for file in _folder(package).rglob("*.py")]
    importing = [str(file) for file in files for _, module in imported(file.read_text()) if within(module, LOCUST)]
    assert importing == []


@pytest.mark.parametrize(
    ("path", "source", "allowed"),
    [
        ("core/names.py", "import repository.records", False),
        ("gateway/rest.py", "from workers.messages import Batch", True),
        ("gateway/rest.py", "from workers import messages", True),
        ("gateway/rest.py", "from workers.worker import Worker", False),
        ("gateway/rest.py", "import workers", False),
        ("gateway/transports/inproc.py", "from workers.worker import Worker", True),
        ("gateway/dataplane.py", "def late():\n    from control import api", False),
        ("control/api.py", "if TYPE_CHECKING:\n    from gateway.routes import Routes", False),
        ("repository/store.py", "from server import up", False),
        ("benchmarks/bench.py", "import server.up", False),
        ("loadtests/job.py", "from penstock import wire", True),
        ("loadtests/job.py", "from benchmarks.echo import app", False),
        ("loadtests/job.py", "import core.settings", False),
        ("loadtests/handicapped.py", "from gateway.dataplane import DataPlane", True),
        ("loadtests/handicapped.py", "from server.up import up", False),
        ("client/penstock/sdk.py", "from core.names import check", False),
        ("client/penstock/sdk.py", "from penstock.wire import Tensor", True),
        ("workers/host.py", "import numpy, repository.records", True),
    ],
)
def test_the_checker_sees_a_forbidden_import(path: str, source: str, allowed: bool) -> None:
    """Wherever it stands in a file, and in each of its spellings."""
    assert (breaches(path, source) == []) is allowed
