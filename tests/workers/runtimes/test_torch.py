"""Weights in safetensors with a registered architecture, and exported programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from core.errors import InvalidRequest
from repository.architectures import ARCHITECTURES
from repository.records import Signature, TensorSpec
from tests.workers.samples import rows, version
from workers.runtimes.architectures import BUILDERS, DigitsCnn, Mlp, build
from workers.runtimes.base import Model
from workers.runtimes.safetensors_header import check_header
from workers.runtimes.torch import load

NOTHING = Signature((), ())


def weights(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    path = folder / "w.safetensors"
    save_file(state, path)
    return path


def opened(path: Path, entry: str = "mlp", hint: Signature = NOTHING) -> Model:
    return load(path, version(kind="torch", entry=entry), hint, 1)


def test_the_registry_is_the_one_that_people_are_shown() -> None:
    assert BUILDERS.keys() == ARCHITECTURES.keys()


def test_an_mlp_reads_its_sizes_off_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Mlp([4, 8, 3])
    model = opened(weights(tmp_path, module.state_dict()))
    assert model.signature == Signature(
        (TensorSpec("input", "FP32", (-1, 4)),), (TensorSpec("output", "FP32", (-1, 3)),)
    )
    got = model.run({"input": rows(1, 2)}, {})["output"]
    assert np.allclose(got, module(torch.from_numpy(rows(1, 2))).detach().numpy())


def test_the_digits_network_takes_its_channels_from_the_weights(tmp_path: Path) -> None:
    model = opened(weights(tmp_path, DigitsCnn(4, 6, 5).state_dict()), "digits-cnn")
    assert model.signature.inputs[0].shape == (-1, 1, 8, 8)
    assert model.run({"input": np.zeros((3, 1, 8, 8), np.float32)}, {})["output"].shape == (3, 10)


def test_tensors_take_the_declared_names(tmp_path: Path) -> None:
    hint = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("p", "FP32", (-1, 2), ("no", "yes")),))
    model = opened(weights(tmp_path, Mlp([4, 2]).state_dict()), hint=hint)
    assert model.signature == hint
    assert list(model.run({"x": rows(1)}, {})) == ["p"]


def test_bf16_weights_serve_bf16(tmp_path: Path) -> None:
    model = opened(weights(tmp_path, Mlp([4, 2]).to(torch.bfloat16).state_dict()))
    assert model.signature.inputs[0].datatype == "BF16"
    got = model.run({"input": rows(1).astype(ml_dtypes.bfloat16)}, {})["output"]
    assert got.dtype == ml_dtypes.bfloat16


def test_read_only_inputs_are_fine(tmp_path: Path) -> None:
    """A lone request's bytes are viewed, not copied; torch would warn of them."""
    array = np.frombuffer(rows(1).tobytes(), np.float32).reshape(1, 4)
    assert opened(weights(tmp_path, Mlp([4, 2]).state_dict())).run({"input": array}, {})["output"].shape == (1, 2)


@pytest.mark.parametrize(
    ("entry", "state", "said"),
    [
        ("resnet", {"0.weight": torch.zeros(2, 4)}, "'resnet' is no registered architecture"),
        ("mlp", {"weight": torch.zeros(2, 4)}, "must be named"),
        ("mlp", {"0.weight": torch.zeros(2, 4)}, "'0.bias'"),
        ("mlp", {"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(3)}, "'0.bias'"),
        ("mlp", {"0.weight": torch.zeros(2, 4), "0.bias": torch.zeros(2), "extra": torch.zeros(1)}, "'extra'"),
        ("mlp", {"0.weight": torch.zeros(2), "0.bias": torch.zeros(2)}, "must be named"),
        ("digits-cnn", {"conv1.weight": torch.zeros(2)}, "conv1"),
        ("digits-cnn", {"conv1.weight": torch.zeros(()), "conv2.weight": torch.zeros(1)}, "conv1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(state: dict[str, torch.Tensor], entry: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        build(entry, state)


# --- malformed safetensors ----------------------------------------------------------------------------------------


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


BAD: dict[str, bytes] = {
    "empty": b"",
    "a header longer than the file": file_of({}, length=1 << 40),
    "a header of 2**63": file_of({}, length=(1 << 63) + 5),
    "no JSON": file_of(b"pickle"),
    "no object": file_of([1]),
    "deep JSON": file_of(b"[" * 100_000 + b"]" * 100_000),
    "duplicates": file_of(b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), bytes(4)),
    "overlap": file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "hole": file_of({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "hole at the start": file_of({"a": entry(4, 8)}, bytes(8)),
    "rest at the end": file_of({"a": entry(0, 4)}, bytes(8)),
    "truncated": file_of({"a": entry(0, 8)}, bytes(4)),
    "shape and data differ": file_of({"a": entry(0, 8, [3])}, bytes(8)),
    "overflowing shape": file_of({"a": entry(0, 4, [1 << 61, 8])}, bytes(4)),
    "negative shape": file_of({"a": entry(0, 4, [-1, -1])}, bytes(4)),
    "negative offsets": file_of({"a": entry(-4, 0, [1])}, b""),
    "backwards": file_of({"a": entry(4, 0, [1])}, bytes(4)),
    "unknown dtype": file_of({"a": entry(0, 4, [1], "F99")}, bytes(4)),
    "odd shape": file_of({"a": {"dtype": "F32", "shape": "4", "data_offsets": [0, 4]}}, bytes(4)),
    "true for one": file_of({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "not UTF-8": file_of(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("case", BAD)
def test_headers_that_lie_are_refused(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By us, before the library sees the file."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD[case])
    monkeypatch.setattr("workers.runtimes.torch.load_file", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(InvalidRequest):
        opened(path)


@given(data=st.binary(max_size=64), cut=st.integers(0, 200), flip=st.integers(0, 200))
def test_a_damaged_file_is_refused_or_sound(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int, flip: int
) -> None:
    """Whatever is done to its bytes: InvalidRequest, or a header that the whole file agrees with; nothing else."""
    path = tmp_path_factory.mktemp("s") / "w.safetensors"
    whole = bytearray(file_of({"a": entry(0, 8)}, bytes(8)))
    whole[flip % len(whole)] ^= 0x55
    path.write_bytes(bytes(whole[: cut or None]) + data)
    try:
        check_header(path)
    except InvalidRequest:
        return


# --- exported programs --------------------------------------------------------------------------------------------


class Two(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": x + scale, "product": x * scale}


def exported(folder: Path, module: nn.Module, dynamic: bool) -> Path:
    path = folder / "p.pt2"
    shapes = ({0: torch.export.Dim("n", max=1024)},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(2 if dynamic else 1, 4),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def test_a_program_with_a_dynamic_batch_tells_it(tmp_path: Path) -> None:
    path = exported(tmp_path, nn.Linear(4, 3), True)
    model = load(path, version(kind="pt2"), NOTHING, 1)
    (given,), (told,) = model.signature.inputs, model.signature.outputs
    assert (given.datatype, given.shape) == ("FP32", (-1, 4))
    assert (told.name, told.shape) == ("output", (-1, 3))
    assert model.run({given.name: rows(1, 2, 3)}, {})["output"].shape == (3, 3)


def test_a_program_without_one_has_fixed_shapes(tmp_path: Path) -> None:
    model = load(exported(tmp_path, nn.Linear(4, 3), False), version(kind="pt2"), NOTHING, 1)
    assert model.signature.inputs[0].shape == (1, 4)
    assert model.signature.outputs[0].shape == (1, 3)


def test_keyword_inputs_and_a_dict_of_outputs(tmp_path: Path) -> None:
    path = tmp_path / "k.pt2"
    program = torch.export.export(Two(), (torch.zeros(4),), {"scale": torch.zeros(4)})
    torch.export.save(program, path)
    model = load(path, version(kind="pt2"), NOTHING, 1)
    assert [spec.name for spec in model.signature.inputs] == ["x", "scale"]
    got = model.run({"x": np.full(4, 3, np.float32), "scale": np.full(4, 2, np.float32)}, {})
    assert (got["sum"].tolist(), got["product"].tolist()) == ([5] * 4, [6] * 4)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InvalidRequest, match="no exported program"):
        load(path, version(kind="pt2"), NOTHING, 1)
