"""The instrument itself: what it counts, and that it tells when a measurement does not count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from tritonclient.grpc import service_pb2 as pb

from benchmarks import against_echo, models, open_loop, report
from benchmarks.bench import PARTS, main, measured
from benchmarks.echo import HEADER_LENGTH, echoed
from benchmarks.load import GrpcTarget, HttpTarget, Load, _call_grpc_loop, _ghz_load, _load_http, percentile
from benchmarks.processes import Echo, cpu_seconds, echo, rss_bytes
from benchmarks.rows import QUICK, Plan, Row, alternating
from loadtests.http_client import Connection, http_request

ONE = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def unit() -> Iterator[Echo]:
    with echo("benchmarks.echo") as running:
        yield running


def test_the_echo_answers_in_the_size_of_the_request() -> None:
    """The unit moves as many bytes as what it is compared with."""
    body = models.json_body(ONE)
    assert echoed(body, None)[1] == body
    binary, headers = models.binary_body(ONE)
    told, answer = echoed(binary, headers[models.BINARY_LENGTH].encode())
    assert answer == binary
    assert (HEADER_LENGTH, headers[models.BINARY_LENGTH].encode()) in told


def test_the_requests_are_those_of_the_protocol() -> None:
    """Each encoding carries the same tensor."""
    assert orjson.loads(models.json_body(ONE))["inputs"][0]["data"] == [1.0] * 4
    body, headers = models.binary_body(ONE)
    assert body[int(headers[models.BINARY_LENGTH]) :] == ONE.tobytes()
    assert pb.ModelInferRequest.FromString(models.grpc_request("m", ONE)).raw_input_contents == [ONE.tobytes()]


def test_sides_alternate_who_goes_first() -> None:
    """A drift of the machine must not favour one of the two; pairs keep their order all the same."""
    order: list[str] = []

    def turn(of: str) -> str:
        order.append(of)
        return of

    pairs = alternating(3, lambda: turn("a"), lambda: turn("b"))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert pairs == [("a", "b")] * 3


@pytest.mark.parametrize(
    ("row", "met", "goal"),
    [
        (Row(part="p", what="w", value=1.5, unit="u", at_least=1.5), True, "≥ 1.5"),
        (Row(part="p", what="w", value=1.4, unit="u", at_least=1.5), False, "≥ 1.5"),
        (Row(part="p", what="w", value=2.6, unit="u", at_most=2.5), False, "≤ 2.5"),
        (Row(part="p", what="w", value=2.0, unit="u", at_most=2.5, void="an answer was 503"), False, "≤ 2.5"),
        (Row(part="p", what="w", value=2.0, unit="u"), None, ""),
    ],
)
def test_a_row_knows_whether_its_goal_is_met(row: Row, met: bool | None, goal: str) -> None:
    """A void row meets nothing; one without a goal says nothing."""
    assert (row.met, row.goal) == (met, goal)


def test_percentiles_are_values_that_were_seen() -> None:
    """And none of an empty list."""
    assert percentile([5.0, 1.0, 3.0], 0.5) == 3.0
    assert percentile(list(range(100)), 0.99) == 99
    assert percentile([], 0.5) == 0.0


async def test_our_own_http_client_counts_answers(unit: Echo) -> None:
    """Where wrk is not found: every answer is counted, none is bad, all within the time."""
    body, headers = models.binary_body(ONE)
    load = await _load_http(HttpTarget(f"http://127.0.0.1:{unit.port}/x", body, headers), 4, 1.0)
    assert load.requests > 4
    assert load.bad == 0
    assert 0 < load.p50_ms <= load.p99_ms
    assert load.rate == load.requests / load.seconds


async def test_a_broken_answer_is_a_bad_one(unit: Echo) -> None:
    """The echo fails on a body that is no JSON: each answer counts as bad."""
    load = await _load_http(HttpTarget(f"http://127.0.0.1:{unit.port}/x", b"{", {}), 1, 0.05)
    assert load.bad == load.requests > 0


async def test_a_closed_connection_answers_with_status_0(unit: Echo) -> None:
    """A caller never waits for what cannot come."""
    request, host, port = http_request(f"http://127.0.0.1:{unit.port}/x", b"{}", {})
    connection = await Connection.open(host, port)
    assert (await connection.call(request))[0] == 200
    await connection.close()
    assert (await connection.call(request))[0] == 0


async def test_the_open_loop_sends_on_schedule(unit: Echo) -> None:
    """As many requests as the rate says, whatever the answers do, and each is answered once."""
    target = HttpTarget(f"http://127.0.0.1:{unit.port}/x", models.json_body(ONE), {})
    offered = await open_loop.offer(target, rate=400, seconds=0.5, connections=8)
    assert 120 < len(offered.answers) < 280
    assert {answer.status for answer in offered.answers} == {200}


async def test_a_request_that_finds_every_connection_busy_waits_on_the_clock(unit: Echo) -> None:
    """Its latency runs from the scheduled send: no queue stays unseen."""
    slow = HttpTarget(f"http://127.0.0.1:{unit.port}/x", b'{"x": "' + b"x" * 300_000 + b'"}', {})
    offered = await open_loop.offer(slow, rate=2000, seconds=0.25, connections=1)
    latencies = [answer.latency for answer in offered.answers]
    assert max(latencies) > 5 * min(latencies)


async def test_our_own_grpc_client_counts_answers() -> None:
    """Where ghz is not found."""
    with echo("benchmarks.grpc_echo") as unit:
        target = GrpcTarget(f"127.0.0.1:{unit.port}", models.grpc_request("m", ONE))
        latencies, bad = await _call_grpc_loop(target, 2, 1.0)
    assert len(latencies) > 2
    assert bad == 0


def test_what_ghz_prints_is_read() -> None:
    """Calls that did not end in OK are bad; a report of no calls at all is bad too."""
    printed = """{"count": 10, "rps": 5, "statusCodeDistribution": {"OK": 8, "Unavailable": 2},
        "latencyDistribution": [{"percentage": 50, "latency": 2000000}, {"percentage": 99, "latency": 5000000}]}"""
    assert _ghz_load(printed, 2.0) == Load(10, 2.0, 2.0, 5.0, 2)
    assert _ghz_load('{"count": 0, "latencyDistribution": null}', 2.0).bad


def test_the_cost_of_a_process_is_seen(unit: Echo) -> None:
    """CPU seconds and resident bytes of the server, not of the client."""
    assert cpu_seconds(unit.pid) > 0
    assert rss_bytes(unit.pid)[0] > 1 << 20


def test_a_comparison_gives_throughput_and_latency_as_ratios(unit: Echo) -> None:
    """Twice the echo's rate at half its p50, by a generator that says so; one bad answer makes it void."""
    slow = against_echo.Side(lambda callers, seconds: Load(100, 1.0, 2.0, 3.0, 0), unit.pid)
    fast = against_echo.Side(lambda callers, seconds: Load(200, 1.0, 1.0, 2.0, 0), unit.pid)
    flawed = against_echo.Side(lambda callers, seconds: Load(200, 1.0, 1.0, 2.0, 1), unit.pid)
    plan = Plan(rounds=3, concurrencies=(1, 128))
    rows = against_echo._compare(against_echo.Contest("p", "P", slow, fast, {128: 1.5}, 2.5), plan)
    assert [(row.what, row.value, row.met) for row in rows] == [
        ("P, c=1: throughput", 2.0, None),
        ("P, c=1: p50", 0.5, True),
        ("P, c=128: throughput", 2.0, True),
        ("P, c=128: p50", 0.5, None),
    ]
    void = against_echo._compare(against_echo.Contest("p", "P", slow, flawed, {128: 1.5}, 2.5), plan)
    assert [row.met for row in void] == [None, False, False, None]
    assert void[0].void == "3 answers were not 2xx"


def test_a_result_says_where_and_when(tmp_path: Path) -> None:
    """Kept as JSON, table and plot; the JSON read back is the same result."""
    row = Row(part="p", what="W", value=2.0, unit="echoes", at_least=1.5, rounds=[1.9, 2.0, 2.1], details={"p50 ms": 1})
    told = report.result([row], {"http": "wrk", "grpc": "ghz"}, load_before=3.2, quick=True)
    path = report.save(told, tmp_path)
    assert report.load(path) == told
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md", ".png"}
    assert "| W (p50 ms 1) | 2 echoes | ≥ 1.5 | yes | 1.9 – 2.1 |" in report.table(told)
    assert "busy with other work (load 3.2 before)" in report.table(told)
    assert {"cpu", "cores", "memory", "kernel", "python"} == set(told.machine)


@pytest.mark.parametrize("name", ["performance", "telemetry"])
def test_the_docs_show_a_result_as_it_was_measured(name: str) -> None:
    """The table of a page is that of the result file it names, to the letter."""
    page = (report.ROOT / "docs" / f"{name}.md").read_text()
    shown = report.SHOWN.search(page)
    assert shown
    assert report.show(shown["name"], page) == page


def test_a_part_that_cannot_be_measured_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not take the other parts' results with it."""

    def broken(_: Plan) -> list[Row]:
        raise RuntimeError("no server")

    monkeypatch.setitem(PARTS, "grpc", broken)
    (row,) = measured("grpc", QUICK)
    assert row.void
    assert row.met is None


def test_only_known_parts_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name is a usage error that lists the right ones."""
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "rest-json,gpu"])
    assert stopped.value.code == 2
    assert "no part 'gpu'" in (said := capsys.readouterr().err)
    assert all(part in said for part in PARTS)
