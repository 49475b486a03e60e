"""What V2 is told of the server and its models."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2

from core.errors import NotFound, NotReady
from core.identity import DEPLOY, PREDICT, Principal
from core.settings import Settings
from gateway import metadata
from gateway.recorder import Recorder
from gateway.routing import Route, Table
from gateway.statistics import Statistics
from repository.catalog import catalog
from repository.records import FORMATS, Signature, TensorSpec, Version, VersionState

IMAGE = TensorSpec("image", "FP32", (-1, 8, 8))
TEXT = TensorSpec("text", "BYTES", (-1, 1))
LOGITS = TensorSpec("logits", "FP32", (-1, 3), labels=("ä", "b", "c"))
ANYONE = Principal("k", "k", "o", PREDICT)
DEPLOYER = Principal("k", "k", "o", DEPLOY)
CHURN_ONLY = Principal("k", "k", "o", PREDICT, ("churn*",))


def version(model: str = "digits", number: int = 1, **changes: Any) -> Version:
    values: dict[str, Any] = {
        "model": model,
        "version": number,
        "owner": "o",
        "format": "onnx",
        "digest": "d" * 64,
        "size": 1,
        "signature": Signature((IMAGE, TEXT), (LOGITS,)),
        "max_batch": 32,
        "default_deadline_ms": 1500,
        "queue_bound": 64,
        "warmup": (1, 32),
        "created": 0.0,
    }
    return Version(**{**values, **changes})


def route(of: Version) -> Route:
    return Route(of, cast(Any, None), Recorder(Settings()).version(of, Statistics()))


def test_the_server_names_its_extensions_as_the_protocol_spells_them() -> None:
    told = metadata.server_metadata()
    assert told["name"] == "penstock"
    assert told["version"].count(".") == 2
    assert "schedule_policy" in told["extensions"]
    assert not {"sequence", "system_shared_memory", "trace", "logging"} & set(told["extensions"])


def test_metadata_lists_the_open_versions_and_the_batch_dimension() -> None:
    first, second, other = route(version()), route(version(number=2)), route(version("churn"))
    told = metadata.model_metadata(second, Table([first, second, other]), ANYONE)
    assert told["versions"] == ["1", "2"]
    assert told["platform"] == "onnx_onnxv1"
    assert told["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}
    assert json_format.ParseDict(told, service_pb2.ModelMetadataResponse()).name == "digits"


def test_a_configuration_is_a_message_of_triton() -> None:
    """Every key exists in `ModelConfig`, dims leave out the batch dimension, and what the push recorded is shown."""
    config = json_format.ParseDict(metadata.model_config(version()), model_config_pb2.ModelConfig())
    assert config.max_batch_size == 32
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("image", model_config_pb2.TYPE_FP32, [8, 8]),
        ("text", model_config_pb2.TYPE_STRING, [1]),
    ]
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (1_500_000, 64)
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 32]
    assert json.loads(config.parameters["labels:logits"].string_value) == ["ä", "b", "c"]


@pytest.mark.parametrize("max_batch", [-1, 0])
def test_a_model_that_does_not_batch_has_no_batch_dimension(max_batch: int) -> None:
    told = metadata.model_config(version(max_batch=max_batch))
    config = json_format.ParseDict(told, model_config_pb2.ModelConfig())
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, 8, 8]
    assert not config.HasField("dynamic_batching")
    assert config.parameters["queue_bound"].string_value == "64"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_a_backend(kind: str) -> None:
    assert metadata.model_config(version(format=kind))["backend"]


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT64", "FP16", "BF16", "FP64", "BYTES"])
def test_every_datatype_has_a_name_in_the_configuration(datatype: str) -> None:
    signature = Signature((TensorSpec("x", datatype, (-1, 2)),), ())
    json_format.ParseDict(metadata.model_config(version(signature=signature)), model_config_pb2.ModelConfig())


def test_statistics_are_of_one_version_of_a_model_or_of_all_that_the_caller_sees() -> None:
    routes = [route(version()), route(version(number=2)), route(version("churn"))]
    table = Table(routes, {(one.name, one.version.version): "READY" for one in routes})

    def told(model: str, number: str, who: Principal = ANYONE) -> list[tuple[str, str]]:
        rows = metadata.statistics(table, model, number, who)["model_stats"]
        return [(row["name"], row["version"]) for row in rows]

    assert told("", "") == [("churn", "1"), ("digits", "1"), ("digits", "2")]
    assert told("digits", "") == [("digits", "1"), ("digits", "2")]
    assert told("digits", "2") == [("digits", "2")]
    assert told("", "", CHURN_ONLY) == [("churn", "1")]
    with pytest.raises(NotFound):
        told("digits", "", CHURN_ONLY)


def test_statistics_of_a_model_without_an_open_version_say_so() -> None:
    with pytest.raises(NotReady, match="digits"):
        metadata.statistics(Table((), {("digits", 1): "UNAVAILABLE"}), "digits", "", ANYONE)


def test_statistics_fit_the_message_of_the_extension() -> None:
    told = metadata.model_statistics(route(version()))
    message = json_format.ParseDict(told, service_pb2.ModelStatistics(), ignore_unknown_fields=True)
    assert message.inference_stats.HasField("cache_miss")


def test_the_index_shows_states_and_reasons_of_what_the_caller_sees() -> None:
    versions = [version(), version(number=2), version("churn", 7)]
    states = [
        VersionState(model="digits", version=1, state="READY"),
        VersionState(model="digits", version=2, state="UNAVAILABLE", reason="damaged"),
    ]
    book = catalog(1, versions, states)
    rows = metadata.repository_index(book, DEPLOYER)
    assert [(row["name"], row["version"], row["state"], row["reason"]) for row in rows] == [
        ("churn", "7", "UNKNOWN", ""),
        ("digits", "1", "READY", ""),
        ("digits", "2", "UNAVAILABLE", "damaged"),
    ]
    reasons = [row["reason"] for row in metadata.repository_index(book, ANYONE)]
    assert reasons == ["", "", "not loaded"], "what quotes the model is for those who may deploy"
    assert [row["version"] for row in metadata.repository_index(book, ANYONE, ready_only=True)] == ["1"]
    assert [row["name"] for row in metadata.repository_index(book, CHURN_ONLY)] == ["churn"]
