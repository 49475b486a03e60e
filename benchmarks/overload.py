"""Two to ten times more than a model can take: what still gets through in time, and how soon the rest is refused.

The model stands for an accelerator: 20 ms an execution of up to 8 rows, without CPU, so its knee lies below 400/s.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import orjson
import uvloop

from benchmarks import models
from benchmarks.load import HttpTarget, load_http, percentile
from benchmarks.open_loop import Offered, offer
from benchmarks.processes import penstock, push_class
from benchmarks.rows import Plan, Row

MAX_BATCH = 8
DEADLINE_S = 0.1
BELOW = (0.5, 0.8, 0.9, 1.0)
ABOVE = (2.0, 5.0, 10.0)
REFUSED = (429, 503)


class Point(NamedTuple):
    """One rate offered, in multiples of the knee. Shares are of 1."""

    load: float
    goodput: float
    refusal_p99_ms: float
    late_share: float
    bad: int
    client_cpu: float


def overload(plan: Plan) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, penstock() as server:
        url = push_class(server, Path(folder), models.PYTHON_DEVICE, "device", MAX_BATCH)
        headers = {"Authorization": f"Bearer {server.api_key}"}
        body = models.json_body(np.ones((1, 4), np.float32))
        knee = load_http(HttpTarget(url, body, headers), 4 * MAX_BATCH, max(3, plan.seconds)).rate
        hurried = orjson.dumps(orjson.loads(body) | {"parameters": {"timeout": int(DEADLINE_S * 1e6)}})
        target = HttpTarget(url, hurried, headers)
        seconds = 2 if plan.quick else 10
        points = [_point(load, uvloop.run(offer(target, load * knee, seconds))) for load in BELOW + ABOVE]
    return _rows(knee, points)


def _point(load: float, offered: Offered) -> Point:
    """Late is an accepted request whose answer came after its deadline, or that was told so (504)."""
    refused = [answer.latency for answer in offered.answers if answer.status in REFUSED]
    in_time = sum(answer.status == 200 and answer.latency <= DEADLINE_S for answer in offered.answers)
    late = sum(
        answer.status == 504 or (answer.status == 200 and answer.latency > DEADLINE_S) for answer in offered.answers
    )
    bad = len(offered.answers) - len(refused) - in_time - late
    return Point(
        load,
        in_time / offered.seconds,
        percentile(refused, 0.99) * 1e3,
        late / max(1, in_time + late),
        bad,
        offered.client_cpu,
    )


def _rows(knee: float, points: list[Point]) -> list[Row]:
    above = [point for point in points if point.load in ABOVE]
    peak = max(point.goodput for point in points)
    goodput = [100 * point.goodput / peak for point in above]
    refusals = [point.refusal_p99_ms for point in above]
    late = [100 * point.late_share for point in above]
    details = {f"goodput/s at {point.load:g}×": point.goodput for point in points}
    details |= {"knee/s": knee, "client CPU %": 100 * max(point.client_cpu for point in points)}
    what = f"overload 2× to 10×, deadline {DEADLINE_S * 1e3:.0f} ms"
    rows = [
        Row(
            part="overload",
            what=f"{what}: least goodput",
            value=min(goodput),
            unit="% of its peak",
            at_least=95,
            rounds=goodput,
            details=details,
        ),
        Row(
            part="overload",
            what=f"{what}: p99 of refusals",
            value=max(refusals),
            unit="ms",
            at_most=20,
            rounds=refusals,
        ),
        Row(part="overload", what=f"{what}: late", value=max(late), unit="% of accepted", at_most=1, rounds=late),
    ]
    return [msgspec.structs.replace(row, void=_void(knee, points)) for row in rows]


def _void(knee: float, points: list[Point]) -> str:
    if knee > 500:
        return f"the knee lies at {knee:.0f}/s, above 500"
    if bad := sum(point.bad for point in points):
        return f"{bad} answers were neither right, refused nor late"
    busiest = max(point.client_cpu for point in points)
    return f"the client took {100 * busiest:.0f} % of a core" if busiest > 0.8 else ""
