"""Who runs beside whom: batches together, a suspect by itself, nobody for ever waiting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.turns import Turns


def test_batches_run_as_they_come() -> None:
    turns: Turns[str] = Turns()
    for name in "ab":
        turns.add(name, suspect=False)
    assert turns.next() == ["a", "b"]
    turns.add("c", suspect=False)
    assert turns.next() == ["c"]


def test_a_suspect_waits_until_nothing_runs_and_holds_the_others_back() -> None:
    turns: Turns[str] = Turns()
    turns.add("a", suspect=False)
    assert turns.next() == ["a"]
    turns.add("S", suspect=True)
    turns.add("b", suspect=False)
    assert turns.next() == []
    turns.done()
    assert turns.next() == ["S"]
    turns.add("c", suspect=False)
    assert turns.next() == []


def test_they_take_turns() -> None:
    """However many there are of either kind."""
    turns: Turns[str] = Turns()
    for name in ("S", "T", "U"):
        turns.add(name, suspect=True)
    ran = []
    for at in range(6):
        turns.add(str(at), suspect=False)
        ready = turns.next()
        ran.append(ready)
        for _ in ready:
            turns.done()
    assert ran == [["S"], ["0", "1"], ["T"], ["2", "3"], ["U"], ["4", "5"]]


@given(st.lists(st.sampled_from(["batch", "suspect", "done"]), max_size=60))
def test_no_suspect_has_company_and_everything_runs(steps: list[str]) -> None:
    """In whatever order things come and end."""
    turns: Turns[tuple[str, int]] = Turns()
    running: list[tuple[str, int]] = []
    added, ran = [], []

    def go() -> None:
        ready = turns.next()
        ran.extend(ready)
        running.extend(ready)
        assert len(running) == 1 or all(kind == "batch" for kind, _ in running)

    for at, step in enumerate(steps):
        if step != "done":
            added.append((step, at))
            turns.add((step, at), suspect=step == "suspect")
        elif running:
            running.pop()
            turns.done()
        go()
    while running:
        running.pop()
        turns.done()
        go()
    assert sorted(ran) == sorted(added)
