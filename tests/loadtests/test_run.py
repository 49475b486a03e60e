"""A very short real run: against a running server and real echoes, with Locust in a process of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import penstock
import pytest

import loadtests.job
from loadtests import open_loop
from loadtests.__main__ import main
from loadtests.budgets import Budget, Budgets, Objective
from loadtests.job import TENANTS, Job, Site, _check_served
from loadtests.judge import Verdict, judged
from loadtests.processes import ECHO, GRPC_ECHO, Server, cpu_seconds, echo, with_tenants
from loadtests.report import header, saved
from loadtests.seen import Outcome, Round, Side, whole
from loadtests.shapes import OPEN_LOOP, ROUNDS
from loadtests.targets import GrpcTarget, HttpTarget, Target
from tests.running import RunningServer

OBJECTIVE = Objective(errors=0.001, late=0.01, late_after_ms=5000)
LIMITS = {"p50": 1000.0, "p95": 1000.0, "p99": 1000.0, "errors": 0.0, "late": 1.0}
EACH = (("digits", "rest-json"), ("iris", "rest-binary"), ("digits", "grpc"))


def silent(step: str) -> None: ...


@pytest.fixture(scope="module")
def site(running_server: RunningServer) -> Iterator[Site]:
    ours = running_server
    server = Server(ours.url, ours.grpc, ours.control, ours.api_key, ours.home, ours.pid)
    with echo(ECHO) as rest, echo(GRPC_ECHO) as grpc:
        yield Site(with_tenants(server, TENANTS), rest, grpc)


def budgets(scenario: str, load: float, *each: tuple[str, str]) -> Budgets:
    made = tuple(Budget(model, transport, scenario, load, LIMITS) for model, transport in each)
    return Budgets({"digits": OBJECTIVE, "iris": OBJECTIVE}, made)


@pytest.mark.parametrize("each", EACH, ids=" ".join)
def test_the_open_loop_measures_both_sides(each: tuple[str, str], site: Site, tmp_path: Path) -> None:
    """Over each transport: all that was sent is answered, latency and CPU of both sides are there."""
    job = Job(budgets(OPEN_LOOP, 40, each), (OPEN_LOOP,), tmp_path, hurry=12, say=silent)
    ((_, rounds),) = job.scenario(OPEN_LOOP, site)
    assert len(rounds) == ROUNDS
    for side in whole(rounds):
        assert (side.sent, side.errors) == (ROUNDS * 40 * open_loop.TURN_S, 0)
        assert 0 < side.at(0.5) <= side.at(0.99)
        assert side.cpu > 0
        assert len(side.segments) == ROUNDS


def test_locust_runs_its_users_over_each_transport(site: Site, tmp_path: Path) -> None:
    """REST in JSON and binary, and gRPC, at once; Locust's report, JSON and a plot are there afterwards."""
    job = Job(budgets("steady", 2, *EACH), ("steady",), tmp_path, hurry=5, say=silent)
    seen = job.scenario("steady", site)
    assert [budget.transport for budget, _ in seen] == ["rest-json", "rest-binary", "grpc"]
    for _, rounds in seen:
        assert len(rounds) == ROUNDS
        for side in whole(rounds):
            assert side.answered > 10
            assert side.errors == 0
    verdicts = judged(seen)
    assert [verdict.breach for verdict in verdicts if not verdict.kept] == []
    assert "digits grpc" in (tmp_path / "steady.html").read_text()
    told = json.loads(saved(header(), seen, verdicts, tmp_path).read_text())
    assert len(told["verdicts"]) == len(verdicts)
    assert len(told["seen"]["digits grpc, steady at 2 users"]) == ROUNDS
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_each_tenant_asks_in_turn(site: Site) -> None:
    """Their keys have owners of their own, so that the server shares among them."""
    with penstock.connect(site.server.url, api_key=site.server.admin, control=site.server.control) as ps:
        owners = {key["owner"] for key in ps.keys.list() if str(key["name"]).startswith("load ")}
    assert owners >= set(TENANTS)
    assert len(set(site.server.keys)) == len(TENANTS)


async def test_a_refused_request_is_an_error(site: Site) -> None:
    """A key that is none, over HTTP and gRPC; a server that is not there."""
    targets: list[Target] = [
        HttpTarget(site.server.url, "rest-json", "digits", ["psk_none"]),
        GrpcTarget(site.server.grpc, "digits", ["psk_none"]),
        HttpTarget("http://127.0.0.1:9", "rest-json", "digits", ["psk_none"]),
    ]
    assert [await target.call() for target in targets] == [Outcome.ERROR] * 3
    for target in targets:
        await target.close()


class Stuck:
    """A target whose first answer holds everybody up."""

    def __init__(self) -> None:
        self.calls = 0

    async def call(self) -> Outcome:
        self.calls += 1
        if self.calls == 1:
            time.sleep(0.1)
        return Outcome.OK

    async def close(self) -> None:
        pass


def test_who_leaves_late_has_waited() -> None:
    """A generator that was held up for 100 ms sends what was due meanwhile, and counts from when it was due."""
    side, target = Side(0.05), Stuck()
    open_loop.on_exact_timers(open_loop.offer(target, side, 100, 1.0))
    assert target.calls == side.answered == 100
    assert side.at(1.0) >= 0.1
    assert 5 <= side.late < 50


def test_a_model_that_the_server_lacks_is_named(site: Site) -> None:
    """Before anything is measured."""
    with pytest.raises(RuntimeError, match="models that the server does not have: nowhere"):
        _check_served(site.server, budgets(OPEN_LOOP, 1, ("nowhere", "grpc")))


def test_a_bad_budgets_file_ends_it_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the place in the file."""
    file = tmp_path / "budgets.yaml"
    file.write_text("models:\n  wine: {}\n")
    assert main(["--budgets", str(file)]) == 2
    assert capsys.readouterr().err == f"{file}:2: models.wine: unknown model; there are digits, iris\n"


def test_the_gate_goes_red(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make load` with a budget that nothing could keep ends with 1, its table says so, and it names the budget."""
    file = tmp_path / "budgets.yaml"
    file.write_text(
        "models:\n  digits:\n    objective: {errors: 1 %, late: 1 %, late_after: 5000 ms}\n    budgets:\n"
        "      - {scenario: open-loop, transport: rest-json, load: 40 arrivals/s, p50: 0.01 echoes, errors: 1 %,"
        " late: 100 %}\n"
    )
    monkeypatch.setattr(Job, "_site", lambda *_: contextlib.nullcontext(site))
    words = ["--only", OPEN_LOOP, "--budgets", str(file), "--results", str(tmp_path), "--hurry", "12"]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "BREACHED" in told.out
    assert "breached: digits rest-json, open-loop at 40 arrivals/s: p50 " in told.err
    assert "allowed 0.01 echoes" in told.err
    assert told.err.count("breached:") == 1


def test_cpu_time_of_a_process_is_exact(site: Site) -> None:
    """And never goes back: the server has used some."""
    before = cpu_seconds(site.server.pid)
    assert 0 < before <= cpu_seconds(site.server.pid)


@pytest.mark.parametrize(("second", "kept"), [(1.0, True), (9.0, False)])
def test_what_is_breached_once_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, second: float, kept: bool
) -> None:
    """Only that, and only what is breached twice counts."""
    one, other = budgets(OPEN_LOOP, 40, *EACH).budgets[:2]
    read = budgets(OPEN_LOOP, 40, *EACH)._replace(budgets=(one, other))
    runs: list[list[str]] = []

    def run(job: Job) -> list[tuple[Budget, list[Round]]]:
        runs.append([str(each) for each in job.budgets.budgets])
        return [(each, []) for each in job.budgets.budgets]

    def told(seen: list[tuple[Budget, list[Round]]]) -> list[Verdict]:
        measured = {str(one): 1.0, str(other): 9.0 if len(runs) == 1 else second}
        return [Verdict(budget, "p50", 3.0, measured[str(budget)], []) for budget, _ in seen]

    monkeypatch.setattr(Job, "run", run)
    monkeypatch.setattr(loadtests.job, "judged", told)
    _, verdicts = Job(read, (OPEN_LOOP,), tmp_path, say=silent).verdicts()
    assert runs == [[str(one), str(other)], [str(other)]]
    assert [verdict.kept for verdict in verdicts] == [True, kept]
