"""The embedded server's own beats: what a second of work comes to."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from gateway.statistics import Statistics
from server.pulse import SAMPLES, Mark, between, mark
from tests.e2e.inside import inside, push
from tests.graphs import identity

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("before", "after", "samples", "busy", "wait"),
    [
        (Mark(), Mark(), [], 0.0, 0),
        (Mark(), Mark({8: (1.0, 2e8)}, 4, 400), [(8, 0.2)], 0.2, 100),
        (Mark({8: (1.0, 2e8)}, 4, 400), Mark({8: (1.0, 2e8)}, 4, 400), [], 0.0, 0),
        (Mark({8: (1.0, 2e8)}, 4, 400), Mark({8: (2.0, 3e8), 1: (1.0, 1e8)}, 6, 500), [(8, 0.1), (1, 0.1)], 0.2, 50),
        (Mark(), Mark({4: (2.0, 4e9)}, 8, 0), [(4, 2.0), (4, 2.0)], 1.0, 0),
    ],
    ids=["nothing yet", "first second", "idle second", "two sizes", "no busier than all the time"],
)
def test_a_second_is_what_lies_between_its_marks(
    before: Mark, after: Mark, samples: list[tuple[int, float]], busy: float, wait: int
) -> None:
    """Executions with rows and seconds, the share of the time, nanoseconds that a request waited."""
    spent = between(before, after, 1.0)
    assert [(rows, round(seconds, 9)) for rows, seconds in spent.samples] == samples
    assert spent.busy == pytest.approx(busy)
    assert spent.queue_wait == wait


def test_of_many_executions_a_few_stand_for_the_rest() -> None:
    """No more than a beat holds, in the shares of their sizes."""
    spent = between(Mark(), Mark({1: (300.0, 3e8), 8: (100.0, 3e8)}, 400, 0), 1.0)
    assert len(spent.samples) == SAMPLES
    assert [rows for rows, _ in spent.samples].count(8) == SAMPLES // 4


def test_a_mark_is_read_off_the_statistics() -> None:
    """All three parts of an execution's time count."""
    statistics = Statistics()
    assert mark(statistics) == Mark()
    statistics.queue.add(2, 300)
    assert mark(statistics) == Mark({}, 2, 300)


async def test_an_embedded_server_tells_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica of each loaded version, one gateway, and what both did in the last second."""
    monkeypatch.setattr("server.pulse.PERIOD_S", 3600.0)  # no beats but those below
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    async with inside(tmp_path / "home") as server:
        await push(server, "echo", identity(), alias="champion")
        key = {"X-API-Key": server.api_key}
        async with httpx.AsyncClient(base_url=server.url, headers=key) as http:
            server.pulse.beat(time.monotonic_ns())
            assert (await http.post("/v2/models/echo/infer", json=body)).status_code == 200
            server.pulse.beat(time.monotonic_ns() + SECOND)
            told = (await http.get("/api/v1/status")).json()
    (model,), (gateway,) = told["models"], told["gateways"]
    (version,) = model["versions"]
    (replica,) = version["where"]
    assert (told["repository"], told["listening"]) == (True, True)
    assert (model["name"], model["deployment"]["replicas"], version["version"], version["aliases"]) == (
        "echo",
        1,
        1,
        ["champion"],
    )
    assert (version["state"], version["ready"], version["waiting"], version["demand"]) == ("READY", 1, 0, 1)
    assert (replica["state"], replica["rows"]) == ("READY", 1.0)
    assert 0 < replica["service_ms"] <= replica["longest_ms"]
    assert (gateway["ready"], gateway["open"], gateway["revision"]) == (True, ["echo/1"], told["revision"])
