"""What a push says of its artifact, checked before a byte of the artifact is read. Pure.

Everything wrong here is the caller's to mend, so every refusal names the field.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import msgspec

from core.datatypes import DATATYPES
from core.errors import InvalidRequest
from core.names import check_alias
from core.settings import MAX_BATCH, MAX_QUEUE, Settings
from repository.architectures import ARCHITECTURES
from repository.records import FORMATS, Signature, TensorSpec
from repository.signature import MAX_NAME, batches, check_batched, check_distinct, check_signature, check_tensor, fits

MAX_WARMUPS = 64
MAX_TAGS = 64
MAX_TEXT = 1024
"""Characters of a tag's value."""
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
SELF_DESCRIBING = frozenset({"onnx"})
"""Formats whose artifact tells its own signature."""
ENTRY_NEEDED = {"python": "the class (PATH:Class)", "torch": "the architecture (--architecture NAME)"}


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()


class Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """V2 metadata. Only inputs and outputs count; the rest may stand, so that a saved metadata answer can be pushed."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] = ()
    name: str = ""
    versions: tuple[str, ...] = ()
    platform: str = ""


class ExampleTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any]
    parameters: dict[str, str | int | float | bool] = {}


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A V2 inference request; its outputs and id may stand and are not looked at."""

    inputs: tuple[ExampleTensor, ...]
    outputs: tuple[dict[str, Any], ...] = ()
    id: str = ""
    parameters: dict[str, str | int | float | bool] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    entry: str = ""
    signature: Described | None = None
    example: Example | None = None
    max_batch: int | None = None
    default_deadline_ms: int | None = None
    queue_bound: int | None = None
    warmup: tuple[int, ...] = ()
    alias: str | None = None
    tags: dict[str, str] = {}
    allow_code: bool = False


def parse(text: bytes | bytearray, settings: Settings) -> Manifest:
    """JSON → a manifest whose every field has been checked. Raises InvalidRequest that names the field."""
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"manifest: {error}".replace("`$.", "`")) from None
    except RecursionError:
        raise InvalidRequest("manifest: nested too deeply") from None
    check(manifest, settings)
    return manifest


def check(manifest: Manifest, settings: Settings) -> None:
    """Raise InvalidRequest for the first thing in a manifest that cannot be."""
    if manifest.format not in FORMATS:
        raise InvalidRequest(f"format: {manifest.format[:64]!r} is none of {', '.join(FORMATS)}")
    _check_entry(manifest.format, manifest.entry)
    _check_numbers(manifest, settings)
    check_tags(manifest.tags)
    if manifest.alias is not None:
        check_alias(manifest.alias)
    if manifest.signature is not None:
        check_signature(signature_of(manifest), settings.max_tensors)
    if manifest.example is not None:
        _check_example(manifest.example, settings)
    _check_known(manifest)
    if manifest.max_batch:
        check_batched(signature_of(manifest), manifest.max_batch)
    if manifest.example is not None and manifest.signature is not None:
        _check_fits(manifest.example, manifest.signature)


def signature_of(manifest: Manifest) -> Signature:
    """As far as the manifest tells it: inputs, outputs or both may be empty."""
    described = manifest.signature
    return Signature((), ()) if described is None else Signature(_specs(described.inputs), _specs(described.outputs))


def _specs(tensors: tuple[Tensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.datatype, t.shape, t.labels) for t in tensors)


def max_batch_of(manifest: Manifest, settings: Settings) -> int:
    """What was asked for; else the default where every tensor's first dimension varies, 0 where one does not, -1
    while the signature is not known."""
    if manifest.max_batch is not None:
        return manifest.max_batch
    signature = signature_of(manifest)
    if not signature.inputs or not signature.outputs:
        return -1
    return settings.default_max_batch if batches(signature) else 0


def _check_entry(kind: str, entry: str) -> None:
    if kind not in ENTRY_NEEDED:
        if entry:
            raise InvalidRequest(f"entry: {kind} artifacts have none")
    elif not entry:
        raise InvalidRequest(f"entry: {kind} artifacts need {ENTRY_NEEDED[kind]}")
    elif kind == "torch" and entry not in ARCHITECTURES:
        raise InvalidRequest(f"entry: {entry[:64]!r} is no architecture of this server's: {', '.join(ARCHITECTURES)}")
    elif kind == "python" and not (entry.isidentifier() and len(entry) <= MAX_NAME):
        raise InvalidRequest(f"entry: {entry[:64]!r} is no class name")


def _check_numbers(manifest: Manifest, settings: Settings) -> None:
    check_range("max_batch", manifest.max_batch, 0, MAX_BATCH)
    check_range("default_deadline_ms", manifest.default_deadline_ms, 1, settings.max_deadline_ms)
    check_range("queue_bound", manifest.queue_bound, 1, MAX_QUEUE)
    if len(manifest.warmup) > MAX_WARMUPS:
        raise InvalidRequest(f"warmup: {len(manifest.warmup)} sizes, at most {MAX_WARMUPS}")
    most = MAX_BATCH if manifest.max_batch is None else max(manifest.max_batch, 1)
    for rows in manifest.warmup:
        check_range("warmup", rows, 1, most)


def check_range(field: str, value: float | None, low: float, high: float) -> None:
    """Raise InvalidRequest for a value that is there and not in the range. NaN is in none."""
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{field}: {value} is not in {low} to {high}")


def check_tags(tags: dict[str, str]) -> None:
    """Raise InvalidRequest for tags that are too many, too long or oddly named."""
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"tags: {len(tags)}, at most {MAX_TAGS}")
    for name, value in tags.items():
        if not TAG.match(name):
            raise InvalidRequest(f"tags: {name[:64]!r} is no tag: 1 to 64 of letters, digits, '_' and '-'")
        if len(value) > MAX_TEXT or not value.isprintable():
            raise InvalidRequest(f"tags: the value of {name!r} is at most {MAX_TEXT} printable characters")


def _check_known(manifest: Manifest) -> None:
    """Enough must be told for the first load to find out the rest."""
    described = manifest.signature
    if manifest.format in SELF_DESCRIBING or manifest.example is not None:
        return
    if described is None:
        raise InvalidRequest(
            f"signature: {manifest.format} artifacts do not tell their inputs and outputs: "
            "give a signature (--signature FILE) or an example (--example FILE)"
        )
    if not described.inputs or not described.outputs:
        raise InvalidRequest(
            f"signature: {manifest.format} artifacts need inputs and outputs (--signature FILE), "
            "or an example that tells them (--example FILE)"
        )


def _check_example(example: Example, settings: Settings) -> None:
    if not 1 <= len(example.inputs) <= settings.max_tensors:
        raise InvalidRequest(f"example.inputs: {len(example.inputs)} tensors, 1 to {settings.max_tensors} are served")
    check_distinct([tensor.name for tensor in example.inputs], "example.inputs")
    for tensor in example.inputs:
        check_tensor(tensor.name, tensor.datatype, tensor.shape, "example.inputs")
        if -1 in tensor.shape:
            raise InvalidRequest(f"example.inputs: the shape of {tensor.name!r} must be given in full")
        if not DATATYPES[tensor.datatype].json:
            raise InvalidRequest(f"example.inputs: JSON cannot carry {tensor.datatype} ({tensor.name!r})")
        count, expected = _count(tensor.data, tensor.name, settings.max_json_depth), prod(tensor.shape)
        if count != expected:
            raise InvalidRequest(f"example.inputs: {tensor.name!r} has {count} elements, its shape asks for {expected}")


def _count(data: list[Any], name: str, depth: int) -> int:
    if depth < 1:
        raise InvalidRequest(f"example.inputs: the data of {name!r} is nested too deeply")
    return sum(_count(item, name, depth - 1) if isinstance(item, list) else 1 for item in data)


def _check_fits(example: Example, described: Described) -> None:
    """The example's tensors are those of the signature, as far as it tells them."""
    specs = {spec.name: spec for spec in described.inputs}
    if specs and specs.keys() != {tensor.name for tensor in example.inputs}:
        raise InvalidRequest(f"example.inputs: the signature's inputs are {', '.join(specs)}")
    for tensor in example.inputs if specs else ():
        spec = specs[tensor.name]
        if tensor.datatype != spec.datatype or not fits(tensor.shape, spec.shape):
            raise InvalidRequest(
                f"example.inputs: {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}, "
                f"the signature says {spec.datatype} {list(spec.shape)}"
            )
