"""That the budgets notice what they should and nothing else: `make load` over and over, on Penstock and on worse ones.

    python -m loadtests.proof [--runs 20] [--worse-runs 3] [--only SCENARIO …]

Every unmodified run must keep all budgets; every one with 5 ms more in the worker, or with a fifth more CPU a request,
must breach one. All verdicts go to `loadtests/results/load-proof.json`, after each run, so that a proof which is broken
off has shown what it has. Exits with 1 unless all of it holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadtests import budgets
from loadtests.handicapped import HANDICAPS
from loadtests.job import Job
from loadtests.judge import Verdict, breaches
from loadtests.processes import COMMAND, stop_on_sigterm
from loadtests.report import RESULTS, header
from loadtests.shapes import IN_CI, SCENARIOS

FILE = RESULTS / "load-proof.json"
UNMODIFIED = "unmodified"


class Run(NamedTuple):
    """`server`: unmodified, or its handicap."""

    server: str
    verdicts: list[Verdict]

    @property
    def breached(self) -> list[str]:
        return breaches(self.verdicts)

    @property
    def as_it_should_be(self) -> bool:
        return bool(self.verdicts) and bool(self.breached) is (self.server != UNMODIFIED)

    def told(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "as_it_should_be": self.as_it_should_be,
            "breaches": self.breached,
            "verdicts": [verdict.told() for verdict in self.verdicts],
        }


def command(server: str) -> list[str | Path]:
    if server == UNMODIFIED:
        return [COMMAND, "up"]
    return [sys.executable, "-m", "loadtests.handicapped", server, "up"]


def order(runs: int, worse_runs: int) -> list[str]:
    """The worse ones spread among the others, so that all meet the same hours of the machine."""
    worse = [name for _ in range(worse_runs) for name in HANDICAPS]
    every = max(1, runs // max(1, len(worse)))
    servers: list[str] = []
    for number in range(max(runs, len(worse))):
        servers += [UNMODIFIED] if number < runs else []
        if number % every == 0 and worse:
            servers.append(worse.pop(0))
    return servers + worse


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    read, told, runs = budgets.read(), header(), []
    for server in order(asked.runs, asked.worse_runs):
        job = Job(read, asked.only or IN_CI, asked.results, command(server), asked.hurry, lambda _: None)
        runs.append(Run(server, job.verdicts()[1]))
        print(f"{server}: {'; '.join(runs[-1].breached) or 'every budget kept'}", flush=True)
        asked.file.parent.mkdir(parents=True, exist_ok=True)
        asked.file.write_text(json.dumps(told | {"runs": [run.told() for run in runs]}, indent=1) + "\n")
    good = sum(run.as_it_should_be for run in runs)
    print(f"{good} of {len(runs)} runs are as they should be; written to {asked.file}")
    return 0 if good == len(runs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.proof", description="Show that the budgets notice.")
    parser.add_argument("--runs", type=int, default=20, help="of Penstock as it is")
    parser.add_argument("--worse-runs", type=int, default=3, help="of each worse one")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help="else what CI runs")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--hurry", type=float, default=1.0, help="divide all times by this: to see that it works")
    return parser


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
