"""`make bench-peers`: Penstock beside other inference servers on this machine, by the method of docs/performance.md.

python -m benchmarks.peers [--only NAME,NAME] [--forms FORM,FORM] [--callers N,N] [--rounds N] [--seconds N] [--quick]
                           [--to FOLDER]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks.load import generators
from benchmarks.peers import told
from benchmarks.peers.registry import PEERS
from benchmarks.peers.rounds import FORMS, QUICK, Plan, measure
from benchmarks.report import RESULTS


def main(arguments: list[str]) -> int:
    """1 where a measurement is void, 0 else: a missed goal or a server that cannot be had is a result."""
    asked = _parse(arguments)
    plan = plan_of(asked)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # ends the server that runs, and tells of the rounds so far
    load_before = os.getloadavg()[0]
    begun = time.monotonic()
    measured = measure([PEERS[name] for name in asked.only], plan)
    result = told.tell(asked.only, measured, plan, generators(), load_before, time.monotonic() - begun)
    path = told.save(result, asked.to)
    print(told.text(result))
    print(f"kept in {path} and beside it")
    return 1 if any(cell.void for cell in result.cells) else 0


def plan_of(asked: argparse.Namespace) -> Plan:
    """The quick plan or the usual one, with what was asked for besides."""
    plan = (QUICK if asked.quick else Plan())._replace(forms=tuple(asked.forms))
    given = {name: getattr(asked, name) for name in ("rounds", "seconds", "callers") if getattr(asked, name)}
    return plan._replace(**given)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description="Measure Penstock beside other servers.")
    parser.add_argument("--only", type=_some(PEERS, "server"), default=list(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--forms", type=_some(FORMS, "form"), default=list(FORMS), help=f"some of {','.join(FORMS)}")
    parser.add_argument("--callers", type=_numbers, help=f"at once; else {','.join(map(str, Plan().callers))}")
    parser.add_argument("--rounds", type=_number, help=f"else {Plan().rounds}")
    parser.add_argument("--seconds", type=_number, help=f"of each measurement, else {Plan().seconds}")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, not to be quoted")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the result")
    return parser.parse_args(arguments)


def _some(known: Collection[str], what: str) -> Callable[[str], list[str]]:
    """Names out of those; the order is that of the registry."""

    def parse(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")
        return [name for name in known if name in asked]

    return parse


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_number(each) for each in text.split(",")}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
