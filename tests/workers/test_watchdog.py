"""When a model counts as hung, and what then happens to the process that it hangs in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from structlog.typing import EventDict

from tests.workers.asking import Doubler, until
from tests.workers.samples import batch_of, rows, version
from workers.execution import Runner
from workers.messages import Member
from workers.watchdog import HUNG, LATE, SECOND, Watchdog, hung, latest_use, watch
from workers.worker import Execution, Timed, Worker

FLOOR = 10 * SECOND
BUDGET = 30 * SECOND
TICK = SECOND // 4


class Case(NamedTuple):
    """Seconds. Something runs since 100; what is to be found `after` that."""

    after: float
    hangs: bool
    deadlines: Sequence[float] = (101,)
    slowest: float = 0.01


CASES: dict[str, Case] = {
    "just begun": Case(0.1, False),
    "not before the floor, whatever the deadlines": Case(10, False),
    "after it": Case(10.1, True),
    "not while somebody could use an answer": Case(50, False, deadlines=[101, 160]),
    "nor within a second after that": Case(61, False, deadlines=[101, 160]),
    "after that": Case(61.1, True, deadlines=[101, 160]),
    "not within three times the slowest and a second": Case(16, False, slowest=5),
    "after those": Case(16.1, True, slowest=5),
    "a deadline that had passed when it began": Case(10.1, True, deadlines=[1]),
    "no deadline is the model's own one, not one before all time": Case(31, False, deadlines=[0]),
    "and not one after all time": Case(31.1, True, deadlines=[0]),
    "one without a deadline beside one with a short one": Case(31, False, deadlines=[101, 0]),
    "beside one with a longer one": Case(61, False, deadlines=[0, 160]),
}


def members_of(case: Case) -> list[Member]:
    return [Member(1, int(deadline * SECOND)) for deadline in case.deadlines]


@pytest.mark.parametrize("name", CASES)
def test_the_rule(name: str) -> None:
    case = CASES[name]
    begun, now = 100 * SECOND, int((100 + case.after) * SECOND)
    latest = latest_use(members_of(case), begun, BUDGET)
    assert hung(begun, latest, int(case.slowest * SECOND), FLOOR, now) is case.hangs


@pytest.mark.parametrize("name", CASES)
def test_a_watchdog_goes_by_it(name: str) -> None:
    case = CASES[name]
    begun, now = 100 * SECOND, int((100 + case.after) * SECOND)
    dog = Watchdog(FLOOR, BUDGET, begun)
    execution = Execution(begun, members_of(case))
    found = [dog.hangs(execution, int(case.slowest * SECOND), at) for at in [*range(begun, now, TICK), now]]
    assert found[-1] is case.hangs
    assert not any(dog.hangs(None, 0, at) for at in range(now, now + 100 * SECOND, TICK))


def test_time_in_which_its_own_process_stood_still_counts_for_nothing() -> None:
    """Who was stopped and goes on finds a model that was stopped too: its silence is counted from then on."""
    begun = 100 * SECOND
    execution = Execution(begun, [Member(1, begun)])
    dog = Watchdog(FLOOR, BUDGET, begun)
    woken = begun + 60 * SECOND
    assert 60 * SECOND > LATE
    assert not any(dog.hangs(execution, 0, at) for at in range(woken, woken + FLOOR + 1, TICK))
    assert dog.hangs(execution, 0, woken + FLOOR + TICK)


async def test_a_process_whose_model_hangs_is_ended_once_and_its_last_words_are_short(logged: list[EventDict]) -> None:
    """The log names the model; whom it had aboard is told, for as long as a farewell may take; then it ends."""
    model = Doubler()
    made = version(default_deadline_ms=1)
    loop = asyncio.get_running_loop()
    worker = Worker(Runner(made, model), [Timed(1, 0.001)], loop.call_soon_threadsafe)
    worker.start()
    ended: list[int] = []
    blamed: list[Sequence[Member]] = []

    async def blame(members: Sequence[Member]) -> None:
        blamed.append(members)
        await asyncio.Event().wait()

    watching = asyncio.create_task(watch(worker, 0.01, blame, ended.append))
    worker.submit(batch_of(rows(1), number=1), lambda _: None)
    await until(lambda: worker.slowest)
    model.gate.clear()
    batch = batch_of(rows(2), rows(3), number=2)
    worker.submit(batch, lambda _: None)
    await asyncio.wait_for(watching, 30)
    assert ended == [HUNG]
    assert blamed == [batch.members]
    (said,) = [entry for entry in logged if entry["event"] == "model hangs, its replica ends"]
    assert (said["log_level"], said["model"], said["members"]) == ("error", made.key, 2)
    model.gate.set()
    await worker.close()
    assert worker.execution is None
