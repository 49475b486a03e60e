"""The load tests: run scenarios, judge every budget, exit with 1 if one is breached and with 2 if the file is no good.

python -m loadtests [--full] [--only SCENARIO …] [--budgets FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.errors import PenstockError

from loadtests import budgets
from loadtests.job import Job
from loadtests.judge import Verdict, breaches
from loadtests.outline import Misread
from loadtests.processes import stop_on_sigterm
from loadtests.report import RESULTS, header, saved, table
from loadtests.shapes import IN_CI, SCENARIOS


def main(words: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(words)
    try:
        read = budgets.read(asked.budgets)
    except Misread as error:
        print(error, file=sys.stderr)
        return 2
    head = header()
    scenarios = asked.only or (tuple(SCENARIOS) if asked.full else IN_CI)
    try:
        seen, verdicts = Job(read, scenarios, asked.results, hurry=asked.hurry).verdicts()
    except (RuntimeError, OSError, PenstockError, subprocess.SubprocessError) as error:
        print(f"the job was broken off: {error}", file=sys.stderr)
        return 1
    print(table(verdicts))
    print(f"written to {saved(head, seen, verdicts, asked.results).parent}")
    return told_breaches(verdicts)


def told_breaches(verdicts: Sequence[Verdict]) -> int:
    """Name each budget that is breached; the exit code."""
    breached = breaches(verdicts)
    for breach in breached:
        print(f"breached: {breach}", file=sys.stderr)
    return 1 if breached or not verdicts else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description="Hold Penstock to its latency budgets.")
    parser.add_argument("--full", action="store_true", help="every scenario, those of the production shape too")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--budgets", type=Path, default=budgets.FILE, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--hurry", type=float, default=1.0, help="divide all times by this: to see that it works")
    return parser


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
