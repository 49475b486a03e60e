"""Every limit and default of a server process, in one frozen object, read once at the edge.

Each field is set by the environment variable PENSTOCK_<NAME>, a secret one also by a file that PENSTOCK_<NAME>_FILE
names, else by a line of the TOML file that PENSTOCK_CONFIG names; `penstock config` prints name, value and origin.
"""

from __future__ import annotations

import json
import os
import tomllib
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core import machine
from core.errors import InvalidRequest

MIB = 1 << 20
INT32 = (1 << 31) - 1
YEAR_S = 366 * 86_400
"""No duration is longer: one that is was a slip, and beyond it clocks overflow one after the other."""
MAX_BATCH = 1 << 16
MAX_QUEUE = 1 << 20
MAX_TENSORS = 1 << 16
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
Count = Annotated[int, Ge(1), Le(INT32)]
Size = Annotated[int, Ge(1), Le(1 << 62)]
Milliseconds = Annotated[int, Ge(1), Le(YEAR_S * 1000)]
Seconds = Annotated[float, Gt(0), Le(YEAR_S)]
GrpcSeconds = Annotated[float, Gt(0), Le(INT32 // 1000)]
"""gRPC counts them in milliseconds, as an int32."""
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseSettings):
    """Durations end in _s (seconds) or _ms (milliseconds), sizes in _bytes."""

    model_config = SettingsConfigDict(
        env_prefix="PENSTOCK_",
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        enable_decoding=False,
        hide_input_in_errors=True,
    )

    # where
    home: Path = Field(
        default=Path(".penstock"),
        description="folder of the embedded repository and client.toml, of a gateway's snapshot, of cached artifacts",
    )
    host: str = Field(default="127.0.0.1", description="address that HTTP and gRPC listen on")
    http_port: Port = Field(default=8080, description="HTTP port; 0 = any free one")
    grpc_port: Port = Field(default=8081, description="gRPC port; 0 = any free one")
    samples: bool = Field(default=True, description="train and register the sample models on the first start")

    # the repository
    mongo_url: str = Field(
        default="", repr=False, description="the repository: mongodb://user:password@host/; empty: SQLite and files"
    )
    mongo_database: str = Field(
        default="penstock", pattern=r"^[A-Za-z0-9_-]{1,38}$", description="the repository's database in MongoDB"
    )
    artifact_cache_bytes: Size = Field(
        default=20 * 1024 * MIB,
        description="artifacts from MongoDB kept in PENSTOCK_HOME/cache, the least used go first",
    )

    # beyond one process
    amqp_url: str = Field(
        default="",
        repr=False,
        description="broker: amqp://user:password@host:port/vhost, or amqps://; empty: all in one process",
    )
    max_message_bytes: Annotated[int, Ge(64 * 1024), Le(INT32)] = Field(
        default=16 * MIB, description="one batch at the broker: no more than its max_message_size (RabbitMQ 4: 16 MiB)"
    )
    control_port: Port = Field(default=8082, description="HTTP port of the control plane where it runs by itself")
    gateways: Count = Field(default=2, description="gateway processes of `penstock up --distributed`")
    snapshot_max_age_s: Seconds = Field(
        default=86_400.0, description="a gateway starts from its last known routes and keys while they are no older"
    )

    # what a request may be
    max_body_bytes: Size = Field(default=64 * MIB, description="request body as sent (Triton: 64 MiB)")
    max_decoded_bytes: Size = Field(default=128 * MIB, description="request body after gzip or deflate")
    max_header_bytes: Count = Field(
        default=16 * 1024, description="request line and headers; also the metadata of a gRPC call"
    )
    max_tensors: Annotated[int, Field(ge=1, le=MAX_TENSORS)] = Field(
        default=256, description="inputs of one request; also its requested outputs and parameters"
    )
    max_tensor_rank: Annotated[int, Field(ge=1, le=32)] = Field(default=32, description="dimensions of one tensor")
    max_tensor_elements: Size = Field(default=1 << 31, description="elements of one tensor, by its shape")
    max_json_depth: Count = Field(
        default=32, description="nesting of a JSON body (in an infer request: no deeper than its tensors)"
    )
    header_timeout_s: GrpcSeconds = Field(default=10.0, description="to receive request line and headers")
    body_timeout_s: Seconds = Field(default=15.0, description="to receive the body, from the end of the headers")
    keep_alive_s: Seconds = Field(
        default=15.0,
        description="an idle HTTP connection is closed after this; a gateway that stops serves for as long",
    )
    write_timeout_s: Seconds = Field(
        default=15.0, description="a client that takes no byte of its answer for this long is cut off"
    )
    max_pipelined: Count = Field(
        default=64, description="requests a client may send ahead of their answers on one connection"
    )
    max_connections: Count = Field(default=20_000, description="open HTTP connections")
    grpc_keepalive_s: GrpcSeconds = Field(default=30.0, description="a silent gRPC connection is pinged after this")
    grpc_ping_timeout_s: GrpcSeconds = Field(
        default=20.0, description="ends a gRPC connection that answers no ping for so long"
    )
    grpc_min_ping_interval_s: GrpcSeconds = Field(
        default=5.0, description="a gRPC client that pings more often is turned away"
    )
    grpc_max_streams: Count = Field(default=1024, description="concurrent gRPC calls on one connection")
    max_control_bytes: Size = Field(default=MIB, description="body of a request that is neither an infer nor a push")

    # batching and deadlines
    default_max_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] = Field(
        default=32, description="max batch of a push that names none and can batch"
    )
    default_deadline_ms: Milliseconds = Field(
        default=30_000, description="of a request that names none, where its model names none"
    )
    max_deadline_ms: Milliseconds = Field(default=600_000, description="the longest deadline a request may ask for")
    queue_bound: Annotated[int, Field(ge=1, le=MAX_QUEUE)] = Field(
        default=2048, description="requests waiting for one model version, where its model names no bound"
    )
    window: Count = Field(default=2, description="batches in flight to one in-process or child worker")
    margin_ms: Annotated[float, Ge(0), Le(YEAR_S * 1000)] = Field(
        default=2.0, description="slack kept under each deadline at admission"
    )

    # pushing
    allow_code: bool | None = Field(
        default=None, description="accept formats that carry code; default: on while every listener is on loopback"
    )
    max_push_bytes: Size = Field(default=4096 * MIB, description="artifact of one push")
    max_manifest_bytes: Size = Field(default=MIB, description="manifest of one push, its example included")
    push_min_rate: Count = Field(default=64 * 1024, description="bytes/s below which an upload is cut off")
    push_window_s: Seconds = Field(default=15.0, description="an upload's rate is measured over this")
    versions_kept: Count = Field(
        default=10, description="versions kept of a model; older ones without alias go at the next push"
    )

    # workers
    compute_threads: Annotated[int, Ge(0), Le(1 << 16)] = Field(
        default=0, description="torch, OpenMP and onnxruntime threads; 0 = the cores"
    )
    concurrent_loads: Count = Field(default=2, description="versions that are loaded at the same time")
    load_timeout_s: Seconds = Field(default=120.0, description="to start, load and warm one version")
    drain_timeout_s: Seconds = Field(
        default=20.0, description="to finish accepted requests when a version or the server stops"
    )
    stop_timeout_s: Annotated[float, Ge(6), Le(YEAR_S)] = Field(
        default=30.0, description="a gateway that is to stop has ended by then, whatever it has to cut off for that"
    )
    child_memory_bytes: Annotated[int, Ge(0), Le(1 << 62)] = Field(
        default=0,
        description="memory of one model's child process; 0 = three quarters of the machine's, or the container's",
    )
    child_patience_s: Seconds = Field(
        default=10.0,
        description="a child, or a replica's model, that answers nothing is not taken for hung before this",
    )
    child_restart_max_s: Seconds = Field(
        default=30.0, description="longest back-off before a dead child is started again"
    )

    # watching
    metrics_host: str = Field(
        default="127.0.0.1",
        description="address that Prometheus metrics are served on; beyond loopback they need a key of role observe",
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=9464, description="first port that Prometheus metrics are tried on, one for each process; 0 = none"
    )
    metrics_buckets_ms: tuple[Annotated[float, Gt(0)], ...] = Field(
        default=(1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000),
        description="upper bounds of the latency histograms' buckets; latency budgets belong among them",
    )
    trace_ratios: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}, description='share of requests traced, by model, as JSON: {"digits": 0.1}; others as OTEL_* says'
    )

    # housekeeping
    poll_interval_s: Annotated[float, Field(gt=0, le=4)] = Field(
        default=1.0, description="the repository is asked for changes by others this often: a key is revoked by then"
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
    )
    log_json: bool = Field(default=False, description="one JSON object a line in place of text")

    @field_validator("amqp_url")
    @classmethod
    def _is_of_a_broker(cls, url: str) -> str:
        if url and not _names_a_broker(url):
            raise ValueError("it is no URL of a broker's: one looks like amqp://user:password@host:5672/")
        return url

    @field_validator("metrics_buckets_ms", "trace_ratios", mode="before")
    @classmethod
    def _from_json(cls, given: object) -> object:
        try:
            return json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None

    @field_validator("metrics_buckets_ms")
    @classmethod
    def _rise(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError("each bound is more than the one before, and there is one at least")
        return bounds

    @property
    def code_allowed(self) -> bool:
        """`allow_code` where it is set, else whether every listener is on loopback."""
        return self.on_loopback if self.allow_code is None else self.allow_code

    @property
    def on_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def threads(self) -> int:
        return self.compute_threads or (os.cpu_count() or 1)

    @property
    def child_memory(self) -> int:
        """Bytes that a child may hold: `child_memory_bytes` where it is set, else three quarters of what there is."""
        return self.child_memory_bytes or machine.memory() * 3 // 4

    def in_force(self, name: str) -> str:
        """The value of a setting as text; of one left to the server also what it decided."""
        value = getattr(self, name)
        if name in SECRET and value:
            return without_password(value)
        decided = AUTOMATIC.get(name)
        if decided is None or value != Settings.model_fields[name].default:
            return str(value)
        return f"auto ({getattr(self, decided)})"


def _names_a_broker(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here
"""What stands for all addresses of this machine, and the one of them that its own programs use."""


def reached(host: str) -> str:
    """Where a program of this machine finds what listens on `host`."""
    return EVERYWHERE.get(host, host)


def authority(host: str, port: int) -> str:
    """host:port, as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


PREFIX = "PENSTOCK_"
CONFIG = "PENSTOCK_CONFIG"
"""Environment variable: the path of a TOML file with a line `name = value` for each setting that it sets."""

SECRET = frozenset({"amqp_url", "mongo_url"})
"""Settings that may carry a password: shown without it, and a file may hold them."""

RESEMBLES = 0.8
"""Share of two names that is the same, from which one may be a slip for the other."""

AUTOMATIC = {"allow_code": "code_allowed", "compute_threads": "threads", "child_memory_bytes": "child_memory"}
"""Setting whose default leaves it to the server → the property that decides."""


def without_password(url: str) -> str:
    """The URL as it may be shown: its password and its options, if it has them, as `***`."""
    head, at, tail = url.rpartition("@")
    scheme, _, user = head.partition("://")
    place, option, _ = tail.partition("?")
    shown = f"{place}?***" if option else place
    return f"{scheme}://{user.partition(':')[0]}:***@{shown}" if at and ":" in user else f"{head}{at}{shown}"


def load() -> Settings:
    """Settings of this process, the environment before the file. Raises InvalidRequest that names each wrong value."""
    given: dict[str, Any] = {name: value for name, value in _lines().items() if _variable(name) not in os.environ}
    given |= {name: _content(variable) for name, variable in _files().items()}
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(_wrong(str(item["loc"][0]), item["msg"], item["input"]) for item in error.errors())
        raise InvalidRequest(wrong) from None


def origins(settings: Settings) -> list[tuple[str, str, str, str]]:
    """(name, value in force, origin, description) of every setting, in the order of their definition."""
    return [
        (name, settings.in_force(name), _origin(name), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def slips() -> dict[str, str]:
    """Environment variables that set nothing and nearly have the name of a setting's → the setting's.

    Those that resemble none may be anybody's: a cluster gives its containers some for each service.
    """
    names = [name.upper() for name in Settings.model_fields]
    taken = {*names, CONFIG.removeprefix(PREFIX), *(f"{name.upper()}_FILE" for name in SECRET)}
    strangers = {name.upper().removeprefix(PREFIX) for name in os.environ if name.upper().startswith(PREFIX)} - taken
    near = {name: get_close_matches(name, names, 1, RESEMBLES) for name in sorted(strangers)}
    return {_variable(name): _variable(found[0]) for name, found in near.items() if found}


def _origin(name: str) -> str:
    """The variable that has set it, or has named its file; the path of the TOML file; or `default`."""
    if _variable(name) in os.environ:
        return _variable(name)
    return _files().get(name) or (os.environ[CONFIG] if name in _lines() else "default")


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _wrong(name: str, said: str, value: object) -> str:
    shown = "" if name in SECRET else f", not {repr(value)[:100]}"
    origin = _origin(name)
    where = origin if origin.startswith(PREFIX) else f"{origin}: {name}"
    return f"{where}: {said.removeprefix('Value error, ').lower()}{shown}"


def _files() -> dict[str, str]:
    """Secret setting → the variable that names its file. Raises InvalidRequest where both are set."""
    found = {}
    for name in sorted(SECRET):
        variable, file = _variable(name), f"{_variable(name)}_FILE"
        if os.environ.get(file):
            if os.environ.get(variable):
                raise InvalidRequest(f"{variable} and {file} are both set: keep one")
            found[name] = file
    return found


def _lines() -> dict[str, Any]:
    """What the TOML file sets. Raises InvalidRequest that names each line of it which is no setting."""
    path = os.environ.get(CONFIG)
    if not path:
        return {}
    try:
        lines = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"the configuration file {path} cannot be read: {said}") from None
    unknown = [name for name in lines if name not in Settings.model_fields]
    if unknown:
        raise InvalidRequest(f"{path}: no such setting: {', '.join(unknown)}; `penstock config` lists them all")
    return lines


def _content(variable: str) -> str:
    try:
        return Path(os.environ[variable]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{variable}: the file cannot be read: {getattr(error, 'strerror', 'no text')}") from None
