"""What a push may say of its artifact: every field, refused by name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest
from repository.architectures import ARCHITECTURES
from repository.manifest import Manifest, check_tags, max_batch_of, parse, signature_of
from repository.records import FORMATS, Signature, TensorSpec
from repository.signature import check_batched, completed
from tests.repository.scripted import SETTINGS, SPEC

X = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
Y = {"name": "y", "datatype": "FP32", "shape": [-1, 2]}
SIGNATURE = {"inputs": [X], "outputs": [Y]}
EXAMPLE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]}]}


def parsed(**fields: Any) -> Manifest:
    return parse(json.dumps({"format": "onnx", **fields}).encode(), SETTINGS)


def tensor(**fields: Any) -> dict[str, Any]:
    return {"signature": {"inputs": [{**X, **fields}], "outputs": [Y]}}


def example(**fields: Any) -> dict[str, Any]:
    return {"example": {"inputs": [{**EXAMPLE["inputs"][0], **fields}]}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"format": "pickle"}, "format: 'pickle' is none of onnx, torch"),
    ({"format": 3}, "`format`"),
    ({"surprise": 1}, "unknown field `surprise`"),
    ({"signature": {**SIGNATURE, "extra": 1}}, "unknown field `extra` - at `signature`"),
    (tensor(parameters={}), "`parameters` - at `signature.inputs[0]`"),
    (tensor(datatype="FLOAT"), "signature.inputs: 'x' has datatype 'FLOAT', which is none of BOOL"),
    (tensor(name=""), "signature.inputs: a tensor's name is 1 to 256"),
    (tensor(name="x" * 257), "a tensor's name is 1 to 256"),
    (tensor(name="a\nb"), "printable"),
    (tensor(shape=[0, 4]), "-1 (variable) or at least 1"),
    (tensor(shape=[-2]), "-1 (variable) or at least 1"),
    (tensor(shape=[1.5]), "`signature.inputs[0].shape[0]`"),
    (tensor(shape=[-1, 1 << 62, 4]), "elements"),
    (tensor(shape=[1 << 21, 1 << 21]), "elements"),
    (tensor(shape=[1] * 33), "33 dimensions"),
    (tensor(labels=["a"]), "labels belong to outputs"),
    ({"signature": {"inputs": [X, X], "outputs": [Y]}}, "two tensors named 'x'"),
    ({"signature": {"inputs": [X], "outputs": [Y, Y]}}, "signature.outputs: there are two tensors named 'y'"),
    ({"signature": {"inputs": [{**X, "name": f"x{i}"} for i in range(257)]}}, "257 tensors, at most 256"),
    ({"signature": {"inputs": [X], "outputs": [{**Y, "labels": [""]}]}}, "a label of 'y'"),
    ({"entry": "Churn"}, "entry: onnx artifacts have none"),
    ({"format": "python", "signature": SIGNATURE}, "entry: python artifacts need the class"),
    ({"format": "python", "signature": SIGNATURE, "entry": "os.system"}, "no class name"),
    ({"format": "python", "signature": SIGNATURE, "entry": "../x"}, "no class name"),
    ({"format": "torch", "signature": SIGNATURE}, "--architecture NAME"),
    ({"format": "torch", "signature": SIGNATURE, "entry": "builtins.eval"}, "no architecture"),
    ({"max_batch": -1}, "max_batch: -1 is not in 0 to"),
    ({"max_batch": 1 << 20}, "max_batch"),
    ({"max_batch": 1 << 70}, "max_batch"),
    ({"max_batch": "8"}, "`max_batch`"),
    ({"max_batch": True}, "`max_batch`"),
    ({"max_batch": 8, **tensor(shape=[3, 4])}, "first dimension of 'x' is the batch and must be -1, not [3, 4]"),
    ({"max_batch": 1, **tensor(shape=[])}, "first dimension of 'x'"),
    ({"default_deadline_ms": 0}, "default_deadline_ms: 0"),
    ({"default_deadline_ms": SETTINGS.max_deadline_ms + 1}, "default_deadline_ms"),
    ({"queue_bound": 0}, "queue_bound: 0"),
    ({"warmup": [0]}, "warmup: 0"),
    ({"warmup": [9], "max_batch": 8}, "warmup: 9 is not in 1 to 8"),
    ({"warmup": [1] * 65}, "warmup: 65 sizes"),
    ({"alias": "12"}, "no alias"),
    ({"alias": "../x"}, "no alias"),
    ({"tags": {"$where": "1"}}, "tags: '$where'"),
    ({"tags": {"a.b": "1"}}, "tags: 'a.b'"),
    ({"tags": {"a": "x\x00"}}, "printable"),
    ({"tags": {"a": "x" * 1025}}, "1024"),
    ({"tags": {f"t{i}": "" for i in range(65)}}, "tags: 65"),
    ({"tags": {"a": 1}}, "`tags[...]`"),
    ({"example": {"inputs": []}}, "example.inputs: 0 tensors"),
    ({"example": {"inputs": EXAMPLE["inputs"] * 2}}, "example.inputs: there are two tensors"),
    (example(data=[1, 2, 3]), "'x' has 3 elements, its shape asks for 4"),
    (example(shape=[-1, 4]), "must be given in full"),
    (example(shape=[1 << 40, 1 << 40]), "elements"),
    (example(datatype="BF16"), "JSON cannot carry BF16"),
    (example(data=json.loads("[" * 40 + "1" + "]" * 40)), "nested too deeply"),
    ({**example(name="z"), "signature": SIGNATURE}, "the signature's inputs are x"),
    ({**example(datatype="INT8"), "signature": SIGNATURE}, "'x' is INT8 [1, 4], the signature says FP32 [-1, 4]"),
    ({**example(shape=[2, 2]), "signature": SIGNATURE}, "the signature says FP32 [-1, 4]"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    """Each refusal names the field and what would be right."""
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert said in caught.value.message


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": "onnx"', b"\xff", b"null", b"[" * 100_000])
def test_what_is_no_manifest_at_all_is_refused(text: bytes) -> None:
    """Cut-off, mistyped or bottomless JSON."""
    with pytest.raises(InvalidRequest, match=r"^manifest: "):
        parse(text, SETTINGS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["format", "signature", "inputs", "example", "shape", "tags", "x"]), inner
            )
        ),
    )
)
def test_no_json_gets_anything_but_an_answer(document: Any) -> None:
    """Whatever is sent as a manifest is accepted or an InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        parse(json.dumps(document).encode(), SETTINGS)


@pytest.mark.parametrize("kind", ["sklearn", "torch", "python", "pt2"])
def test_an_artifact_that_tells_nothing_needs_signature_or_example(kind: str) -> None:
    """The message names both options; outputs may be left to the example."""
    fields: dict[str, Any] = {"format": kind, "entry": {"torch": "mlp", "python": "Churn"}.get(kind, "")}
    with pytest.raises(InvalidRequest, match=r"--signature.*--example"):
        parsed(**fields)
    with pytest.raises(InvalidRequest, match=r"--signature.*--example"):
        parsed(**fields, signature={"inputs": [X], "outputs": []})
    assert signature_of(parsed(**fields, signature=SIGNATURE)) == SPEC
    assert parsed(**fields, example=EXAMPLE).signature is None
    assert parsed(**fields, signature={"inputs": [X]}, example=EXAMPLE).example is not None


def test_onnx_tells_its_own() -> None:
    """Nothing but the format is needed."""
    assert signature_of(parsed()) == Signature((), ())


def test_a_saved_metadata_answer_is_a_signature() -> None:
    """V2 metadata holds name, versions and platform too: they may stand."""
    saved = {"name": "m", "versions": ["1"], "platform": "onnx_onnxv1", **SIGNATURE}
    assert signature_of(parsed(signature=saved)) == SPEC


FIXED = {"inputs": [{**X, "shape": [1, 4]}], "outputs": [Y]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"signature": SIGNATURE}, 32),
        ({"signature": SIGNATURE, "max_batch": 8}, 8),
        ({"signature": SIGNATURE, "max_batch": 0}, 0),
        ({"signature": FIXED}, 0),
        ({}, -1),
        ({"signature": {"inputs": [X]}}, -1),
        ({"max_batch": 4}, 4),
    ],
)
def test_max_batch_by_default(fields: dict[str, Any], expected: int) -> None:
    """32 where every first dimension varies, 0 where one does not, undecided where the signature is not known."""
    assert max_batch_of(parsed(**fields), SETTINGS) == expected


def test_every_format_and_architecture_is_accepted() -> None:
    """The tables and the checks agree."""
    for kind in FORMATS:
        entry = {"torch": next(iter(ARCHITECTURES)), "python": "Churn"}.get(kind, "")
        assert parsed(format=kind, entry=entry, signature=SIGNATURE).format == kind
    assert all(ARCHITECTURES.values())


def test_good_tags_are_accepted() -> None:
    """Also empty values and other scripts'."""
    check_tags({"a-b_c": "", "stage": "früh 日本"})


# --- what a first load finds --------------------------------------------------------------------------------------


def spec(name: str = "x", datatype: str = "FP32", *shape: int, labels: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name, datatype, shape, labels)


def test_what_was_found_completes_what_was_given() -> None:
    """Given sides stand, labels and all; empty ones are filled."""
    found = Signature((spec("x", "FP32", -1, 4),), (spec("y", "INT64", -1),))
    labelled = (spec("y", "INT64", -1, labels=("no", "yes")),)
    assert completed(Signature((), ()), found) == found
    assert completed(Signature((), labelled), found).outputs == labelled
    narrow = (spec("x", "FP32", 2, 4),)
    assert completed(Signature(narrow, ()), found).inputs == narrow


@pytest.mark.parametrize(
    "given",
    [spec("z", "FP32", -1, 4), spec("x", "FP64", -1, 4), spec("x", "FP32", -1, 5), spec("x", "FP32", -1)],
    ids=["name", "datatype", "shape", "rank"],
)
def test_what_was_found_may_not_contradict(given: TensorSpec) -> None:
    """Both sides are named in the refusal."""
    found = Signature((spec("x", "FP32", -1, 4),), ())
    with pytest.raises(InvalidRequest, match=r"the signature's inputs.*the model's"):
        completed(Signature((given,), ()), found)


def test_batching_needs_a_variable_first_dimension_of_every_tensor() -> None:
    """Outputs included; without batching any shape will do."""
    fixed_output = Signature(SPEC.inputs, (spec("y", "FP32", 1, 2),))
    with pytest.raises(InvalidRequest, match=r"signature.outputs.*'y'"):
        check_batched(fixed_output, 1)
    check_batched(fixed_output, 0)
    check_batched(SPEC, 32)
