"""Closed-loop load: Locust in a process of its own, with users of the server and as many of the echo at the same time.

What Locust is to do goes to it as JSON (`Plan`), what its users saw comes back as JSON. This file stands on both sides
of that and imports no Locust.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hdrh.histogram import HdrHistogram

from loadtests.seen import Outcome, Round, Side, both
from loadtests.shapes import ROUNDS, WARM_S, round_of

HERE = Path(__file__).parent
OVER_WITHIN_S = 60.0


class Aim(NamedTuple):
    """Where users go. `address`: a URL, for gRPC host:port. `name`: what Locust calls it; `users` of them at most."""

    name: str
    transport: str
    model: str
    address: str
    keys: tuple[str, ...]
    users: int


class Pair(NamedTuple):
    """A budget's users: as many of the echo as of the server. `late_after`: seconds."""

    budget: str
    late_after: float
    ours: Aim
    echo: Aim


class Plan(NamedTuple):
    """`result`: the file for what was seen."""

    scenario: str
    seconds: float
    pairs: tuple[Pair, ...]
    result: str

    @property
    def users(self) -> int:
        return sum(pair.ours.users + pair.echo.users for pair in self.pairs)


def plan_of(told: Any) -> Plan:
    """From JSON, where every tuple has become a list."""
    scenario, seconds, pairs, result = told
    made = (Pair(budget, late, _aim(ours), _aim(echo)) for budget, late, ours, echo in pairs)
    return Plan(scenario, seconds, tuple(made), result)


def _aim(told: Any) -> Aim:
    name, transport, model, address, keys, users = told
    return Aim(name, transport, model, address, tuple(keys), users)


class Recorder:
    """In Locust's process: what users see, by budget and round. `begun`: when the scenario did (perf_counter)."""

    def __init__(self, plan: Plan, begun: float) -> None:
        self.begun = begun
        self._seconds = plan.seconds
        self._rounds = {pair.budget: [both(pair.late_after) for _ in range(ROUNDS)] for pair in plan.pairs}

    def of(self, budget: str, side: str) -> Callable[[float, float, Outcome], None]:
        sides: list[Side] = [getattr(each, side) for each in self._rounds[budget]]

        def record(sent: float, seconds: float, outcome: Outcome) -> None:
            number = round_of(self._seconds, sent - self.begun)
            if number is not None:
                sides[number].record(seconds, outcome)

        return record

    def told(self) -> dict[str, Any]:
        return {
            budget: [{"ours": each.ours.told(), "echo": each.echo.told()} for each in rounds]
            for budget, rounds in self._rounds.items()
        }


def run(plan: Plan, report: Path) -> dict[str, list[Round]]:
    """Have Locust run the scenario, its HTML report at `report`; the rounds of each budget. Raises RuntimeError."""
    with tempfile.TemporaryDirectory(prefix="penstock-load-") as folder:
        plan = plan._replace(result=str(Path(folder) / "result.json"))
        asked = Path(folder) / "plan.json"
        asked.write_text(json.dumps(plan))
        command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        command += ["--html", str(report), "--exit-code-on-error", "0", "--stop-timeout", "10", "--loglevel", "WARNING"]
        done = subprocess.run(
            command,
            env=os.environ | {"PENSTOCK_LOAD": str(asked), "PYTHONPATH": str(HERE.parent)},
            cwd=HERE.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WARM_S + plan.seconds + OVER_WITHIN_S,
        )
        if done.returncode or not Path(plan.result).exists():
            raise RuntimeError(f"Locust ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        told = json.loads(Path(plan.result).read_text())
    late = {pair.budget: pair.late_after for pair in plan.pairs}
    return {
        budget: [Round(_side(late[budget], each["ours"]), _side(late[budget], each["echo"])) for each in rounds]
        for budget, rounds in told.items()
    }


def _side(late_after: float, told: dict[str, Any]) -> Side:
    side = Side(late_after)
    side.latencies = HdrHistogram.decode(told["histogram"])
    side.answered, side.late, side.errors = told["answered"], told["late"], told["errors"]
    return side
