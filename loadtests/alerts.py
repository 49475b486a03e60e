"""Prometheus rules made from the budgets file: for each model's objective alerts on how fast its error budget burns.

    python -m loadtests.alerts [FILE]       writes them there, else prints them; `make alerts`: deploy/alerts.yml

An objective allows a month's requests a share of errors, and of late answers. A burn rate of 1 uses that share up in
the month, one of 14.4 in two days. An alert wants both a long window, so that it matters, and a short one, so that it
ends soon after the trouble does (Google's SRE workbook, chapter 5):

    page    14.4 times over 1 h and over 5 min (2 % of the month's budget is gone)
    page     6   times over 6 h and over 30 min (5 %)
    ticket   1   times over 3 d and over 6 h (10 %)

What a server has no bucket for nobody can count as late: that is an alert of its own, else it would never be noticed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from loadtests.budgets import FILE, Budgets, Misread, Objective, read

HEADER = "# Made from loadtests/budgets.yaml by `make alerts`; a test holds the two together. docs/load-tests.md\n"
REQUESTS = "penstock_requests_total"
SECONDS = "penstock_request_duration_seconds"
COUNTED = 'outcome!~"cancelled|invalid"'
"""Who hung up has no complaint, and what nobody could answer is none of the server's business."""


class Burn(NamedTuple):
    severity: str
    factor: float
    long: str
    short: str


BURNS = (Burn("page", 14.4, "1h", "5m"), Burn("page", 6, "6h", "30m"), Burn("ticket", 1, "3d", "6h"))
WINDOWS = ("5m", "30m", "1h", "6h", "3d")


class Share(NamedTuple):
    """A recorded share of requests. `promql`: WINDOW stands for the window. `labels`: what it holds for, if not all."""

    name: str
    promql: str
    labels: dict[str, str] = {}

    def record(self, window: str) -> str:
        return f"penstock:{self.name}:share_{window}"


class Indicator(NamedTuple):
    """A share of a model's requests that should stay under `allowed`; `means`: what they do."""

    share: Share
    model: str
    allowed: float
    means: str


def _outcomes(which: str) -> str:
    some = f"sum by (model) (rate({REQUESTS}{{{which}}}[WINDOW]))"
    return f"{some} / sum by (model) (rate({REQUESTS}{{{COUNTED}}}[WINDOW]))"


ERRORS = Share("errors", _outcomes('outcome=~"refused|failed"'))
EXPIRED = Share("expired", _outcomes('outcome="late"'))


def late(model: str, objective: Objective) -> Share:
    """Of the answers over each transport those that took longer than the objective says: what its bucket lacks."""
    quick, every = _timed(model, objective)
    return Share("late", f"1 - {quick} / {every}", {"model": model})


def _timed(model: str, objective: Objective) -> tuple[str, str]:
    """Answers a second within the objective's bound, and all of them, by transport."""
    labels = f'model="{model}",stage="total"'
    bound = objective.late_after_ms / 1e3
    return (
        f'sum by (transport) (rate({SECONDS}_bucket{{{labels},le="{bound}"}}[WINDOW]))',
        f"sum by (transport) (rate({SECONDS}_count{{{labels}}}[WINDOW]))",
    )


def indicators(model: str, objective: Objective) -> Iterator[Indicator]:
    slower = f"over {{{{ $labels.transport }}}} take longer than {objective.late_after_ms:g} ms"
    yield Indicator(ERRORS, model, objective.errors, "are refused or fail")
    yield Indicator(EXPIRED, model, objective.late, "miss their deadline")
    yield Indicator(late(model, objective), model, objective.late, slower)


def rules(budgets: Budgets) -> dict[str, Any]:
    """The content of a rule file: what is recorded for each window, and the alerts on it."""
    every = [each for model, objective in budgets.objectives.items() for each in indicators(model, objective)]
    shares = [ERRORS, EXPIRED, *(late(*each) for each in budgets.objectives.items())]
    return {
        "groups": [
            {"name": "penstock-shares", "rules": [_recorded(each, window) for each in shares for window in WINDOWS]},
            {"name": "penstock-burn", "rules": [_alert(each, burn) for each in every for burn in BURNS]},
            {"name": "penstock-unmeasured", "rules": [_unmeasured(*each) for each in budgets.objectives.items()]},
        ]
    }


def _recorded(share: Share, window: str) -> dict[str, Any]:
    labels = {"labels": dict(share.labels)} if share.labels else {}
    return {"record": share.record(window), "expr": share.promql.replace("WINDOW", window), **labels}


def _alert(indicator: Indicator, burn: Burn) -> dict[str, Any]:
    limit = f"{burn.factor * indicator.allowed:.10g}"
    share, model = indicator.share, indicator.model
    over = [f'{share.record(window)}{{model="{model}"}} > {limit}' for window in (burn.long, burn.short)]
    return {
        "alert": f"Penstock{share.name.title()}",
        "expr": " and ".join(over),
        "labels": {"severity": burn.severity, "burn": f"{burn.factor:g}", "model": model},
        "annotations": {
            "summary": f"{model}: {{{{ $value | humanizePercentage }}}} of requests {indicator.means}",
            "description": f"{burn.factor:g} times what the objective allows ({100 * indicator.allowed:g} % of a "
            f"month's), over {burn.long} and over {burn.short}.",
        },
    }


def _unmeasured(model: str, objective: Objective) -> dict[str, Any]:
    """There are answers, and no bucket ends where the objective's late ones begin."""
    quick, every = (side.replace("WINDOW", "5m") for side in _timed(model, objective))
    bound = f"{objective.late_after_ms:g} ms"
    return {
        "alert": "PenstockLateUnmeasured",
        "expr": f"{every} unless {quick}",
        "for": "15m",
        "labels": {"severity": "ticket", "model": model},
        "annotations": {
            "summary": f"{model}: nobody counts answers over {{{{ $labels.transport }}}} that take longer than {bound}",
            "description": f"Its objective says late_after: {bound}, and a server has no such bucket: add it to "
            "PENSTOCK_METRICS_BUCKETS_MS.",
        },
    }


def rendered(budgets: Budgets) -> str:
    return HEADER + str(yaml.safe_dump(rules(budgets), sort_keys=False, width=118))


def main(target: Path | None = None, budgets: Path = FILE) -> int:
    try:
        text = rendered(read(budgets))
    except Misread as error:
        print(error, file=sys.stderr)
        return 2
    if target is None:
        print(text, end="")
    else:
        target.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
