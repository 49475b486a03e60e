"""What the standard OTEL_* variables say.

OTEL_EXPORTER_OTLP_ENDPOINT, …_TRACES_ENDPOINT   where to: without one nothing is traced
OTEL_EXPORTER_OTLP_PROTOCOL, …_TRACES_PROTOCOL   grpc (the default) or http/protobuf
OTEL_TRACES_EXPORTER                             otlp (then the endpoint may be left out), or none
OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG     as the SDKs have them; default: parentbased_traceidratio 0.01
OTEL_SDK_DISABLED, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*, OTEL_EXPORTER_OTLP_*   likewise
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog
from opentelemetry.sdk.resources import Resource

from core.spans import Exporter, Spans
from core.trace import Sampling

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEFAULT_RATIO = 0.01


def from_environment(service: str) -> Spans | None:
    """Where this process's spans go; None: it traces nothing. `service`: its name, if OTEL_SERVICE_NAME has none."""
    return begun(lambda: Spans(_otlp(os.environ, resource(service))), "traces") if wanted(os.environ) else None


def begun(make: Callable[[], T], what: str) -> T | None:
    """What an exporter is made into; None, and a line in the log, where OTEL_* says what the library cannot take. The
    library's own lines are left out: whoever exports tells by itself, once."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        return make()
    except Exception as error:
        log.warning("not exported: OTEL_* variables that cannot be taken", what=what, why=str(error)[:200])
        return None


def disabled(environment: Mapping[str, str]) -> bool:
    """Whether nothing at all is to be exported."""
    return environment.get("OTEL_SDK_DISABLED", "").lower() == "true"


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether spans are to be exported at all."""
    if disabled(environment):
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        log.warning("unknown OTEL_TRACES_EXPORTER: otlp or none; nothing is traced", given=exporter[:64])
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or (not exporter and any(environment.get(name) for name in names))


def _otlp(environment: Mapping[str, str], resource: Resource) -> Exporter:
    from core.otlp_spans import OverGrpc, OverHttp  # what is not exported need not be imported

    over = OverGrpc if protocol(environment, "TRACES") == "grpc" else OverHttp
    return over(resource)  # type: ignore[return-value]  # the library's exporter says that it takes the SDK's spans


def protocol(environment: Mapping[str, str], signal: str) -> str:
    """`grpc` or `http/protobuf`, for TRACES or METRICS."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    given = next((environment[name] for name in names if environment.get(name)), "grpc")
    if given not in ("grpc", "http/protobuf"):
        log.warning("unknown OTLP protocol: grpc or http/protobuf; grpc is taken", given=given[:64])
        return "grpc"
    return given


def sampling(environment: Mapping[str, str], by_model: Mapping[str, float]) -> Sampling:
    """As OTEL_TRACES_SAMPLER and _ARG say; an unknown sampler or ratio is logged, and the default taken."""
    name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    ratio = _ratio(argument)
    fixed = {"always_on": 1.0, "always_off": 0.0, "traceidratio": 1.0 if ratio is None else ratio}
    base = name.removeprefix("parentbased_")
    if name and base in fixed:
        return Sampling(fixed[base], name != base, floor=False, by_model=by_model)
    if name:
        log.warning("unknown OTEL_TRACES_SAMPLER: the default is taken", given=name[:64])
    return Sampling(DEFAULT_RATIO if ratio is None else ratio, True, floor=ratio is None, by_model=by_model)


def _ratio(text: str) -> float | None:
    if not text:
        return None
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if 0.0 <= ratio <= 1.0:
        return ratio
    log.warning("OTEL_TRACES_SAMPLER_ARG is no ratio from 0 to 1", given=text[:64])
    return None


def resource(service: str) -> Resource:
    """What this process is, with what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say of it."""
    names = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or service, "service.namespace": "penstock"}
    host = os.uname().nodename
    return Resource.create(names | {"host.name": host, "service.instance.id": f"{host}-{os.getpid()}"})
