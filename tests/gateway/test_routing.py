"""Which version answers: digits, aliases, the champion, the highest open one; and why none does."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import InvalidRequest, NotFound, NotReady, PenstockError
from core.identity import Principal
from core.settings import Settings
from gateway.recorder import Recorder
from gateway.routing import Route, Table
from gateway.statistics import Statistics
from repository.records import LOADING, READY, UNAVAILABLE, Alias, Signature, Version

ALL = Principal("k", "n", "o", "predict")
SOME = Principal("k", "n", "o", "predict", ("other*",))


def route(model: str, number: int) -> Route:
    version = Version(
        model=model,
        version=number,
        owner="o",
        format="onnx",
        digest="",
        size=1,
        signature=Signature((), ()),
        max_batch=0,
        default_deadline_ms=1,
        queue_bound=1,
        created=0.0,
    )
    batcher: Any = None
    return Route(version, batcher, Recorder(Settings()).version(version, Statistics()))


KNOWN = {("m", 1): READY, ("m", 2): READY, ("m", 3): LOADING, ("m", 4): UNAVAILABLE, ("cold", 1): LOADING}


def table(*aliases: Alias) -> Table:
    return Table([route("m", 2), route("m", 1)], KNOWN, aliases)


def alias(name: str, version: int, model: str = "m") -> Alias:
    return Alias(model=model, alias=name, version=version)


@pytest.mark.parametrize(
    ("aliases", "asked", "served"),
    [
        ((), "", "2"),
        ((), "1", "1"),
        ((alias("champion", 1),), "", "1"),
        ((alias("champion", 1),), "champion", "1"),
        ((alias("candidate", 1),), "", "2"),
        ((alias("candidate", 1),), "candidate", "1"),
        ((alias("champion", 1),), "2", "2"),
    ],
)
def test_served_by(aliases: tuple[Alias, ...], asked: str, served: str) -> None:
    """A version by its digits or an alias; without one the champion, else the highest open one."""
    assert table(*aliases).resolve("m", asked, ALL).number == served


@pytest.mark.parametrize(
    ("aliases", "model", "asked", "error", "names"),
    [
        ((), "m", "3", NotReady, "loading"),
        ((), "m", "4", NotReady, "not ready"),
        ((alias("champion", 3),), "m", "", NotReady, "version 3"),
        ((alias("x", 4),), "m", "x", NotReady, "version 4"),
        ((), "m", "5", NotFound, "'5'"),
        ((), "m", "nobody", NotFound, "'nobody'"),
        ((), "m", "01", NotFound, "'01'"),
        ((), "m", "9" * 30, NotFound, "999"),
        ((), "m", "²", NotFound, "version or alias"),
        ((), "cold", "", NotReady, "'cold'"),
        ((), "unknown", "", NotFound, "'unknown'"),
        ((), "../m", "", InvalidRequest, "no model name"),
        ((), "", "", InvalidRequest, "no model name"),
    ],
)
def test_why_not(aliases: tuple[Alias, ...], model: str, asked: str, error: type[PenstockError], names: str) -> None:
    """Known but not open is 503 with Retry-After, unknown is 404, what cannot be a name is 400; each names itself."""
    with pytest.raises(error) as refused:
        table(*aliases).resolve(model, asked, ALL)
    assert names in refused.value.message
    assert (refused.value.retry_after is not None) == (error is NotReady)


def test_a_key_sees_its_models_only() -> None:
    """Outside a key's patterns a model does not exist: the same error as for an unknown one, and no place in a list."""
    with pytest.raises(NotFound) as hidden:
        table().resolve("m", "", SOME)
    with pytest.raises(NotFound) as unknown:
        table().resolve("n", "", SOME)
    assert hidden.value.message == unknown.value.message.replace("'n'", "'m'")
    assert table().open(SOME) == []
    assert [found.number for found in table().open(ALL)] == ["1", "2"]
