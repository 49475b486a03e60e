"""`make bench`: Penstock beside bare servers on this machine, by the method of docs/performance.md.

python -m benchmarks.bench [--only PART,PART] [--quick] [--to FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    against_echo,
    compute,
    distributed,
    footprint,
    large,
    micro,
    overload,
    real_knee,
    report,
    telemetry,
)
from benchmarks.load import generators
from benchmarks.rows import QUICK, Plan, Row

PARTS: dict[str, Callable[[Plan], list[Row]]] = {
    "rest-json": against_echo.rest_json,
    "rest-binary": against_echo.rest_binary,
    "grpc": against_echo.grpc,
    "compute": compute.compute,
    "large": large.large,
    "overload": overload.overload,
    "knee": real_knee.real_knee,
    "memory": footprint.memory,
    "child": footprint.child,
    "micro": micro.micro,
    "telemetry": telemetry.telemetry,
    "distributed": distributed.rest_json,
    "distributed-image": distributed.image,
    "distributed-growth": distributed.growth,
}


def main(arguments: list[str]) -> int:
    """1 where a measurement is void, 0 else: a missed goal is a result, not a failure."""
    asked = _parse(arguments)
    plan = QUICK if asked.quick else Plan()
    rows = []
    load_before = os.getloadavg()[0]
    for part in asked.only:
        print(f"{part} …", flush=True)
        rows += measured(part, plan)
    told = report.result(rows, generators(), load_before, plan.quick)
    path = report.save(told, asked.to)
    print(report.table(told))
    print(f"kept in {path} and beside it")
    return 1 if any(row.void for row in rows) else 0


def measured(part: str, plan: Plan) -> list[Row]:
    """The part's rows; one void row where it could not be measured, so that the others are not lost with it."""
    try:
        return PARTS[part](plan)
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(*traceback.format_exception(error), sep="", file=sys.stderr)
        return [Row(part=part, what=part, value=0, unit="", void="it could not be measured")]


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.bench", description="Measure Penstock beside bare servers.")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="short rounds: shows that it works, not to be quoted")
    parser.add_argument("--to", type=Path, default=report.RESULTS, help="folder of the result")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    asked = text.split(",")
    if unknown := [part for part in asked if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
