"""`make simulate`: the batching policy in virtual time, beside the rules of others and the optimum.

python -m benchmarks.simulation [--only PART,PART] [--quick] [--to FOLDER]

Everything is a function of the seeds: a run at the same commit gives the same figures on any machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import RESULTS
from benchmarks.rows import Row
from benchmarks.simulation import acceptance, checks, curves, knee, told, trials
from benchmarks.simulation.acceptance import FLEETS, QUICK, Size
from benchmarks.simulation.scene import DEVICE, KINDS, TARGET, Scene


def _checks(size: Size) -> list[Row]:
    return checks.rows(size.requests * 15, 0.5, 4)


def _fixed(size: Size) -> list[Row]:
    some = ((1, 1),) if size.quick else ((1, 1), (2, 2), (4, 2))
    scenes = [Scene(replicas=n, gateways=g) for n, g in (some if size.quick else FLEETS)]
    scenes += [Scene(kind, replicas=n, gateways=g) for kind in KINDS[1:] for n, g in some[::2]]
    tight = [Scene(kind, replicas=n, gateways=g, target=2.5) for kind in KINDS[:3:2] for n, g in some[::2]]
    return [acceptance.against_fixed(scene, size) for scene in scenes + tight]


def _late(size: Size) -> list[Row]:
    scenes = [Scene(kind, replicas=n, gateways=g) for kind in (KINDS[0], KINDS[2], KINDS[4]) for n, g in FLEETS]
    return [row for scene in scenes for row in acceptance.lateness(scene, size)]


def _fair(size: Size) -> list[Row]:
    return [acceptance.fairness(Scene(replicas=n, gateways=g), size, asks) for asks in (0.9, 1.5) for n, g in FLEETS]


def _knee(size: Size) -> list[Row]:
    return knee.rows(2 * size.requests, 4 if size.quick else 6)


PARTS: dict[str, Callable[[Size], list[Row]]] = {
    "checks": _checks,
    "optimum": acceptance.against_optimum,
    "fixed": _fixed,
    "late": _late,
    "fair": _fair,
    "knee": _knee,
    "window": trials.windows,
    "margin": trials.margins,
    "ageing": trials.ageing,
}
CURVES = "curves"


def main(arguments: list[str]) -> int:
    """0: a missed goal is a result, not a failure."""
    asked = _parse(arguments)
    size = QUICK if asked.quick else Size()
    rows: list[Row] = []
    drawn: list[curves.Curve] = []
    begun = time.monotonic()
    for part in asked.only:
        print(f"{part} …", flush=True)
        if part == CURVES:
            drawn = curves.curves(size)
        else:
            rows += PARTS[part](size)
    result = told.tell(rows, drawn, _parameters(size), size.quick, time.monotonic() - begun)
    path = told.save(result, asked.to)
    print(told.table(result))
    print(f"kept in {path} and beside it")
    return 0


def _parameters(size: Size) -> dict[str, float]:
    return {
        "τ₀ ms": 1e3 * DEVICE.fixed_s,
        "α ms": 1e3 * DEVICE.row_s,
        "max batch": DEVICE.max_batch,
        "jitter": DEVICE.jitter,
        "deadline in full batches": TARGET,
        "requests a run": size.requests,
        "seed": Scene().seed,
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.simulation", description="The batching policy in virtual time.")
    names = [*PARTS, CURVES]
    parser.add_argument("--only", type=_parts, default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small: shows that it works, not to be quoted")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the result")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    asked = text.split(",")
    if unknown := [part for part in asked if part not in PARTS and part != CURVES]:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are {', '.join([*PARTS, CURVES])}")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
