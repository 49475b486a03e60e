"""What the standard variables say."""

from __future__ import annotations

import pytest

from core import otel
from core.otel import sampling
from core.trace import Sampling


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4317"}, False),
    ],
)
def test_the_environment_says_whether_anything_is_traced(environment: dict[str, str], wanted: bool) -> None:
    assert otel.wanted(environment) is wanted


DEFAULT = Sampling(0.01, True, floor=True)


@pytest.mark.parametrize(
    ("sampler", "argument", "expected"),
    [
        ("", "", DEFAULT),
        ("", "0.5", Sampling(0.5)),
        ("always_on", "", Sampling(1.0, parent_based=False)),
        ("always_off", "", Sampling(0.0, parent_based=False)),
        ("traceidratio", "0.1", Sampling(0.1, parent_based=False)),
        ("traceidratio", "", Sampling(1.0, parent_based=False)),
        ("parentbased_always_on", "", Sampling(1.0)),
        ("parentbased_always_off", "", Sampling(0.0)),
        ("parentbased_traceidratio", "0", Sampling(0.0)),
        ("parentbased_traceidratio", "many", Sampling(1.0)),
        ("parentbased_traceidratio", "1.5", Sampling(1.0)),
        ("jaeger_remote", "", DEFAULT),
    ],
)
def test_the_environment_says_which_requests_are_traced(sampler: str, argument: str, expected: Sampling) -> None:
    """An argument that is none counts as missing, as OpenTelemetry has it."""
    assert sampling({"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}, {}) == expected


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            "http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "carrier pigeon"}, "grpc"),
    ],
)
def test_the_environment_says_how_spans_travel(environment: dict[str, str], protocol: str) -> None:
    assert otel.protocol(environment, "TRACES") == protocol
