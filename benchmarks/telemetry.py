"""What it costs to watch: the product over REST at 128 connections, by servers that differ in nothing else.

unmetered           neither metrics nor traces
metrics             as it ships, without a collector
1 %, 100 %          the same, and that share of requests traced to a Jaeger on the same machine, which takes its part of
                    it
1 % sent elsewhere  to a collector that does nothing with them: what tracing costs the server, without what Jaeger costs
                    the machine

The four that differ by a few percent, less than one round from the next, have three times the rounds; the 100 %, whose
spans keep server and Jaeger busy beyond their round, come after them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import models
from benchmarks.against_echo import ONE, push_product
from benchmarks.load import HttpTarget, Load, load_http
from benchmarks.processes import ROOT, cpu_seconds, echo, penstock
from benchmarks.rows import Plan, Row, median, ratio
from tests.running import COMMAND, RunningServer, clean_environment

CALLERS = 128
METRICS_AT_LEAST, TRACING_AT_LEAST = 0.97, 0.95
UNMETERED, METRICS, SOME, ALL, ELSEWHERE = "unmetered", "metrics", "1 %", "100 %", "1 % sent elsewhere"
ALIKE = (UNMETERED, METRICS, SOME, ELSEWHERE)
MORE = 3
"""Times the rounds for those."""


class Seen(NamedTuple):
    load: Load
    cpu_us: float
    """Of the server, for each request, in microseconds."""


class Side(NamedTuple):
    server: RunningServer
    target: HttpTarget

    def run(self, seconds: int) -> Seen:
        before = cpu_seconds(self.server.pid)
        load = load_http(self.target, CALLERS, seconds)
        return Seen(load, (cpu_seconds(self.server.pid) - before) / max(1, load.requests) * 1e6)

    def spans(self) -> dict[str, float]:
        """Those that it exported, dropped, failed to export."""
        (file,) = (self.server.home / "metrics").glob("*.json")
        address = json.loads(file.read_text())[0]["targets"][0]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        counted = [line for line in lines if line.startswith("penstock_spans_total")]
        return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in counted}


def telemetry(plan: Plan) -> list[Row]:
    with contextlib.ExitStack() as stack:
        tracing = stack.enter_context(_jaeger()) | {"OTEL_TRACES_SAMPLER": "traceidratio"}
        elsewhere = stack.enter_context(echo("benchmarks.collector"))
        variables = {
            UNMETERED: {"PYTHONPATH": str(ROOT / "benchmarks" / "unmetered")},
            METRICS: {},
            SOME: tracing | {"OTEL_TRACES_SAMPLER_ARG": "0.01"},
            ALL: tracing | {"OTEL_TRACES_SAMPLER_ARG": "1"},
            ELSEWHERE: {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{elsewhere.port}",
                "OTEL_TRACES_SAMPLER": "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.01",
            },
        }
        sides = {name: stack.enter_context(_side(each)) for name, each in variables.items()}
        for side in sides.values():
            side.run(1)  # warm
        alike, whole = {name: sides[name] for name in ALIKE}, {name: sides[name] for name in (METRICS, ALL)}
        rounds = [_round(alike, number, plan.seconds) for number in range(MORE * plan.rounds)]
        floods = [_round(whole, number, plan.seconds) for number in range(plan.rounds)]
        spans = {name: sides[name].spans() for name in (SOME, ELSEWHERE, ALL)}
    return [
        _row(rounds, METRICS, UNMETERED, METRICS_AT_LEAST, {}),
        _row(rounds, SOME, METRICS, TRACING_AT_LEAST, spans[SOME]),
        _row(rounds, ELSEWHERE, METRICS, TRACING_AT_LEAST, spans[ELSEWHERE]),
        _row(floods, ALL, METRICS, None, spans[ALL]),
    ]


def _round(sides: dict[str, Side], number: int, seconds: int) -> dict[str, Seen]:
    """Each once; who goes first, and who after whom, changes from round to round."""
    names = list(sides)
    turn = number % len(names)
    order = names[turn:] + names[:turn]
    return {name: sides[name].run(seconds) for name in (order[::-1] if number % 2 else order)}


def _row(rounds: list[dict[str, Seen]], name: str, unit: str, at_least: float | None, spans: dict[str, float]) -> Row:
    bad = sum(seen[side].load.bad for seen in rounds for side in (name, unit))
    ratios = [ratio(seen[name].load.rate, seen[unit].load.rate) for seen in rounds]
    requests = sum(seen[name].load.requests for seen in rounds)
    details = {
        "requests/s": median([seen[name].load.rate for seen in rounds]),
        "server CPU µs/request": median([seen[name].cpu_us for seen in rounds]),
        f"{unit}: server CPU µs/request": median([seen[unit].cpu_us for seen in rounds]),
        "requests": float(requests),
    }
    what = name if name == METRICS else f"tracing {name}"
    return Row(
        part="telemetry",
        what=f"{what}: throughput at c={CALLERS}",
        value=median(ratios),
        unit="without metrics" if name == METRICS else "without tracing",
        at_least=at_least,
        rounds=ratios,
        details=details | {f"spans {outcome}": count for outcome, count in spans.items()},
        void=f"{bad} answers were not 2xx" if bad else "",
    )


@contextlib.contextmanager
def _side(variables: dict[str, str]) -> Iterator[Side]:
    with penstock(**variables) as server:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.api_key}"}
        yield Side(server, HttpTarget(push_product(server), models.json_body(ONE), headers))


@contextlib.contextmanager
def _jaeger() -> Iterator[dict[str, str]]:
    """A Jaeger of its own; what exporters are told of it."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        environment = clean_environment() | {"PENSTOCK_HOME": folder}

        def services(*words: str) -> str:
            command = [str(COMMAND), "services", *words]
            return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

        services("up", "--only", "jaeger")
        try:
            told = json.loads(services("env", "--json"))
            yield {name: value for name, value in told.items() if name.startswith("OTEL_")}
        finally:
            services("down", "--only", "jaeger")
