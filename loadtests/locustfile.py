"""What Locust runs: the users of one scenario and its shape, as the file in PENSTOCK_LOAD says.

    PENSTOCK_LOAD=scenario.json locust -f loadtests/locustfile.py --headless

When it is over the file in its `result` has both sides of each budget, round by round.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events

from loadtests.closed_loop import Plan, Recorder, plan_of
from loadtests.shapes import SCENARIOS, users
from loadtests.users import user_class

plan: Plan = plan_of(json.loads(Path(os.environ["PENSTOCK_LOAD"]).read_text()))
recorder = Recorder(plan, time.perf_counter())


class Shape(LoadTestShape):
    def tick(self) -> tuple[int, float] | None:
        scenario = SCENARIOS[plan.scenario]
        now = users(scenario.shape, plan.seconds, plan.users, time.perf_counter() - recorder.begun)
        return None if now is None else (now, float(plan.users))


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def start(**_: Any) -> None:
    recorder.begun = time.perf_counter()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def stop(**_: Any) -> None:
    Path(plan.result).write_text(json.dumps(recorder.told()))


# Locust takes the classes that it finds among this file's names
globals().update(
    (made.__name__, made)
    for pair in plan.pairs
    for made in (
        user_class(pair.ours, recorder.of(pair.budget, "ours")),
        user_class(pair.echo, recorder.of(pair.budget, "echo")),
    )
)
