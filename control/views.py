"""What `/api/v1` answers and accepts, as JSON: the shapes that the OpenAPI document shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from core.identity import PREDICT, Principal
from repository.access import reason_for
from repository.catalog import Catalog
from repository.records import ApiKey, TensorSpec, Version, VersionState


class Accepted(BaseModel):
    """What is sent: unknown members are refused."""

    model_config = ConfigDict(extra="forbid")


class Error(BaseModel):
    error: str = Field(examples=["unknown model 'churn'"])
    error_id: str | None = Field(default=None, description="names the line of the server's log that has the details")


class Tensor(BaseModel):
    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(description="-1 = variable", examples=[[-1, 1, 8, 8]])
    labels: list[str] = Field(default=[], description="of an output: the name of each class")


class SignatureView(BaseModel):
    inputs: list[Tensor]
    outputs: list[Tensor]


class VersionView(BaseModel):
    version: int = Field(examples=[3])
    state: str = Field(description="READY, LOADING, UNLOADING, UNAVAILABLE or UNKNOWN", examples=["READY"])
    reason: str = Field(description="why it is not ready, or what to know of it; in full for those who may deploy")
    format: str = Field(examples=["onnx"])
    platform: str = Field(examples=["onnx_onnxv1"])
    size: int = Field(description="of the artifact, in bytes")
    digest: str = Field(description="SHA-256 of the artifact")
    entry: str = Field(description="class or architecture, where the format needs one")
    max_batch: int = Field(description="rows of one execution; 0: no batching; -1: not known before the first load")
    default_deadline_ms: int
    queue_bound: int
    warmup: list[int] = Field(description="rows of each run before it is ready")
    signature: SignatureView
    tags: dict[str, str]
    owner: str
    created: float = Field(description="Unix seconds")
    wanted: str = Field(description="auto: by the rule; always or never: by name")


class ModelView(BaseModel):
    name: str = Field(examples=["digits"])
    owner: str
    aliases: dict[str, int] = Field(examples=[{"champion": 3}])
    versions: list[VersionView] = Field(description="newest first")


class Models(BaseModel):
    models: list[ModelView]


class Standing(BaseModel):
    name: str
    version: int
    state: str


class AliasView(BaseModel):
    model: str
    alias: str
    version: int


class Deleted(BaseModel):
    deleted: str = Field(examples=["digits/3"])


class Whoami(BaseModel):
    name: str
    owner: str
    role: str
    models: list[str] = Field(description="patterns of the models that the key may see")
    grants: list[str]


class KeyView(BaseModel):
    id: str
    name: str
    owner: str
    role: str
    models: list[str]
    grants: list[str]
    created: float
    expires: float = Field(description="Unix seconds, 0 = never")
    revoked: bool


class IssuedKeyView(KeyView):
    key: str = Field(description="the key itself, shown this once")


class Keys(BaseModel):
    keys: list[KeyView]


class Architecture(BaseModel):
    name: str
    description: str


class Architectures(BaseModel):
    architectures: list[Architecture]


VersionName = Annotated[StrictInt | StrictStr, Field(description="number or alias", examples=[3])]


class Target(Accepted):
    version: VersionName


class Chosen(Accepted):
    version: VersionName | None = None


class NewKey(Accepted):
    name: str = Field(examples=["dashboard"])
    role: str = Field(default=PREDICT, examples=["predict"])
    owner: str | None = Field(default=None, description="the tenant it counts as; default: its name")
    models: list[str] = Field(default=["*"], description="patterns of model names", examples=[["churn-*"]])
    grants: list[str] = Field(default=[], description="`code`: may push formats that carry code")
    expires_in_s: float | None = Field(default=None, description="seconds until it expires; default: never")


def model_view(catalog: Catalog, model: str, who: Principal) -> ModelView:
    """A model of the catalog as `who` may see it; its owner is that of the oldest version kept."""
    versions = list(catalog.versions[model].values())
    return ModelView(
        name=model,
        owner=versions[0].owner,
        aliases=dict(catalog.aliases.get(model, {})),
        versions=[
            version_view(version, catalog.states.get((model, version.version)), who) for version in reversed(versions)
        ],
    )


def version_view(version: Version, state: VersionState | None, who: Principal) -> VersionView:
    return VersionView(
        version=version.version,
        state="UNKNOWN" if state is None else state.state,
        reason=reason_for(who, state),
        format=version.format,
        platform=version.platform,
        size=version.size,
        digest=version.digest,
        entry=version.entry,
        max_batch=version.max_batch,
        default_deadline_ms=version.default_deadline_ms,
        queue_bound=version.queue_bound,
        warmup=list(version.warmup),
        signature=SignatureView(
            inputs=[_tensor(spec) for spec in version.signature.inputs],
            outputs=[_tensor(spec) for spec in version.signature.outputs],
        ),
        tags=version.tags,
        owner=version.owner,
        created=version.created,
        wanted=version.wanted,
    )


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(name=spec.name, datatype=spec.datatype, shape=list(spec.shape), labels=list(spec.labels))


def whoami(principal: Principal) -> Whoami:
    return Whoami(
        name=principal.name,
        owner=principal.owner,
        role=principal.role,
        models=list(principal.patterns),
        grants=sorted(principal.grants),
    )


def key_view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.key_id,
        name=key.name,
        owner=key.owner,
        role=key.role,
        models=list(key.patterns),
        grants=list(key.grants),
        created=key.created,
        expires=key.expires,
        revoked=key.revoked,
    )
