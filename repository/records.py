"""What the repository keeps: one struct a kind, the meeting place of gateway, workers and control plane.

Every record has a `key` (unique within its kind) and a `revision` that the store sets: 1 when inserted,
one more with each replacement; a writer that saw another revision is told so. Times are Unix seconds, for people:
nothing is decided by them but key expiry.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN = "READY", "LOADING", "UNLOADING", "UNAVAILABLE", "UNKNOWN"
"""States of a version, in Triton's words."""

AUTO, ALWAYS, NEVER = "auto", "always", "never"
"""Whether a version is wanted: by the rule (highest or aliased), by name, or not at all."""

FORMATS: dict[str, str] = {
    "onnx": "onnx_onnxv1",
    "torch": "pytorch_safetensors",
    "pt2": "pytorch_export",
    "sklearn": "sklearn_skops",
    "python": "python_class",
}
"""Artifact format → the platform name that V2 metadata shows."""

CODE_FORMATS = frozenset({"pt2", "python"})
"""Formats that carry code: they need a grant and run in a process of their own."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    kind: ClassVar[str]
    counted: ClassVar[bool] = True
    """Whether the store's `revision()` grows with each write of such a record: whether a catalog is made of it."""
    revision: int = 0

    @property
    def key(self) -> str:
        raise NotImplementedError


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """`shape` as V2 metadata shows it: with the batch dimension where the model batches, -1 = variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    """Of an output, for the classification extension: the name of each class."""


class Signature(msgspec.Struct, frozen=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Version(Record, frozen=True, kw_only=True):
    """One immutable version of a model; only `wanted`, `attempt` and `tags` change."""

    kind: ClassVar[str] = "version"

    model: str
    version: int
    owner: str
    format: str
    """One of FORMATS."""
    digest: str
    """SHA-256 of the artifact, in hex."""
    size: int
    """Of the artifact, in bytes."""
    entry: str = ""
    """The class of a python artifact, the registered architecture of a torch one."""
    signature: Signature
    """Outputs (and inputs, where the artifact itself tells them) may be empty until the first load has found them."""
    example: str = ""
    """Digest of the example that came with the push: a V2 inference request as JSON."""
    max_batch: int
    """-1: to be decided at the first load; 0: no batching, requests run one by one; else the rows of one execution."""
    default_deadline_ms: int
    queue_bound: int
    warmup: tuple[int, ...] = ()
    """Batch sizes run before the version is ready."""
    tags: dict[str, str] = {}
    created: float
    wanted: str = AUTO
    attempt: int = 1
    """Raised by a load by name: a version that failed is tried again."""

    @property
    def key(self) -> str:
        return f"{self.model}/{self.version}"

    @property
    def carries_code(self) -> bool:
        return self.format in CODE_FORMATS

    @property
    def platform(self) -> str:
        return FORMATS[self.format]


class VersionState(Record, frozen=True, kw_only=True):
    """What the worker says of a version: written by whoever hosts it, read by everybody."""

    kind: ClassVar[str] = "state"

    model: str
    version: int
    state: str
    reason: str = ""
    attempt: int = 1
    """Of the version record that this state answers."""
    updated: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.model}/{self.version}"


class Alias(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = "alias"

    model: str
    alias: str
    version: int

    @property
    def key(self) -> str:
        return f"{self.model}/{self.alias}"


class Counter(Record, frozen=True, kw_only=True):
    """The last version number given out for a model: a number is never given twice, even after a deletion."""

    kind: ClassVar[str] = "counter"

    model: str
    last: int

    @property
    def key(self) -> str:
        return self.model


class Deployment(Record, frozen=True, kw_only=True):
    """How many replicas a model's versions run as, and what each of them gets. A model without one has the defaults.

    The values are checked by `repository/deployments.py`.
    """

    kind: ClassVar[str] = "deployment"

    model: str
    replicas: int = 1
    """Of each loaded version, at least."""
    max_replicas: int = 1
    """Of each loaded version, at most: as many as demand asks for."""
    cpus: float = 0.1
    """Cores that a replica is placed by, not a limit of what it uses."""
    gpus: float = 0.0
    """Devices of a replica: a share of one, or whole ones."""
    accelerator: str = ""
    """The type of device in Ray's words (H200, L4, …); empty: any."""

    @property
    def key(self) -> str:
        return self.model


class ApiKey(Record, frozen=True, kw_only=True):
    """A key without its secret: `digest` is the SHA-256 of the whole key, in hex."""

    kind: ClassVar[str] = "key"

    key_id: str
    name: str
    owner: str
    role: str
    patterns: tuple[str, ...] = ("*",)
    grants: tuple[str, ...] = ()
    digest: str
    created: float
    expires: float = 0.0
    """Unix seconds, 0 = never."""
    revoked: bool = False

    @property
    def key(self) -> str:
        return self.key_id


class Lease(Record, frozen=True, kw_only=True):
    """Who of several processes does a work that only one may do; it lives as long as its revision moves."""

    kind: ClassVar[str] = "lease"
    counted: ClassVar[bool] = False

    name: str
    owner: str
    """"" = nobody."""

    @property
    def key(self) -> str:
        return self.name


KINDS: dict[str, type[Record]] = {
    record.kind: record for record in (Version, VersionState, Alias, Counter, Deployment, ApiKey, Lease)
}
