"""A class from a file: what is loaded, what is refused, and never outside a child."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from core.errors import Internal, InvalidRequest
from repository.records import Signature
from tests.workers.samples import python_file, rows, version
from workers.runtimes import base
from workers.runtimes.base import Model
from workers.runtimes.python import load

NOTHING = Signature((), ())


def opened(folder: Path, source: str, entry: str = "Model") -> Model:
    return load(python_file(folder, source), version(kind="python", entry=entry), NOTHING, 1)


def test_load_is_called_and_predict_answers(tmp_path: Path) -> None:
    model = opened(
        tmp_path,
        """
        class Model:
            def load(self):
                self.factor = 3
            def predict(self, inputs):
                return {"y": inputs["x"] * self.factor}
        """,
    )
    assert model.run({"x": rows(2)}, {})["y"].tolist() == rows(6).tolist()


def test_parameters_go_to_a_predict_that_takes_them(tmp_path: Path) -> None:
    model = opened(
        tmp_path,
        """
        class Model:
            def predict(self, inputs, parameters):
                return {"y": inputs["x"] * parameters["factor"]}
        """,
    )
    assert model.run({"x": rows(2)}, {"factor": 5})["y"].tolist() == rows(10).tolist()


def test_a_model_may_write_to_its_inputs(tmp_path: Path) -> None:
    """Even to a lone request's, which are a view of bytes that cannot be written."""
    model = opened(
        tmp_path,
        """
        class Model:
            def predict(self, inputs):
                inputs["x"] *= 2
                return inputs
        """,
    )
    array = np.frombuffer(rows(1).tobytes(), np.float32).reshape(1, 4)
    assert model.run({"x": array}, {})["x"].tolist() == rows(2).tolist()
    assert array.tolist() == rows(1).tolist()


def test_dataclasses_and_bfloat16_work_inside(tmp_path: Path) -> None:
    model = opened(
        tmp_path,
        """
        from __future__ import annotations
        from dataclasses import dataclass
        import ml_dtypes

        @dataclass
        class Model:
            kind: type = ml_dtypes.bfloat16
            def predict(self, inputs):
                assert inputs["x"].dtype == self.kind
                return {"y": inputs["x"]}
        """,
    )
    assert model.run({"x": rows(1).astype(ml_dtypes.bfloat16)}, {})["y"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Other: pass", "no class 'Model'"),
        ("Model = 3", "no class 'Model'"),
        ("class Model: pass", "no method predict"),
        ("class Model:\n    async def predict(self, inputs): ...", "async"),
        ("class Model:\n    predict = 3", "no method predict"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Model:\n    def __init__(self, needed): ...\n    def predict(self, inputs): ...", "needed"),
        ("class Model:\n    def load(self): 1/0\n    def predict(self, inputs): ...", "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        opened(tmp_path, source)


@pytest.mark.parametrize("kind", ["python", "pt2"])
def test_code_is_never_loaded_outside_a_process_of_its_own(tmp_path: Path, kind: str) -> None:
    path = python_file(tmp_path, "import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    with pytest.raises(Internal, match="process of its own"):
        base.load(path, version(kind=kind, entry="Model"), NOTHING, 1, isolated=False)
    assert not (tmp_path / "ran").exists()
