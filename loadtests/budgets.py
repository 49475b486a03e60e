"""The budgets file: what each model may cost over each transport at a stated load, and what is promised of it.

    models:
      digits:
        objective: {errors: 0.1 %, late: 1 %, late_after: 50 ms}          absolute, by month: alerts
        budgets:
          - scenario: open-loop          or one of Locust's: steady, spike, …
            transport: rest-json         rest-binary, grpc
            load: 300 arrivals/s         with Locust: 8 users
            p50: 3 echoes                p95, p99; cpu (a request's, open loop only)
            errors: 0.1 %                late

A field that is not known is refused, and so is a unit: `Misread` names the file, the line and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.outline import Misread, Outline, Where
from loadtests.payloads import MODELS
from loadtests.shapes import OPEN_LOOP, SCENARIOS
from loadtests.units import ARRIVALS, ECHOES, MS, USERS, quantity, share

FILE = Path(__file__).parent / "budgets.yaml"
TRANSPORTS = ("rest-json", "rest-binary", "grpc")
PERCENTILES = ("p50", "p95", "p99")
CPU = "cpu"
SHARES = ("errors", "late")
LIMITS = (*PERCENTILES, CPU, *SHARES)
BUDGET = ("scenario", "transport", "load", *LIMITS)
OBJECTIVE = ("errors", "late", "late_after")
LARGEST_SHARE = 0.05
"""Of an objective: above it the fastest burn rate, 14.4 times as much, could hardly be reached."""


class Objective(NamedTuple):
    """Shares of a month's requests that may fail, and may take longer than `late_after_ms` or get no answer in time."""

    errors: float
    late: float
    late_after_ms: float


class Budget(NamedTuple):
    """`load`: arrivals a second, or users; `limits`: by name, percentiles and CPU in echoes, the others as shares."""

    model: str
    transport: str
    scenario: str
    load: float
    limits: dict[str, float]

    def __str__(self) -> str:
        return f"{self.model} {self.transport}, {self.scenario} at {self.load:g} {unit_of(self.scenario)}"


class Budgets(NamedTuple):
    objectives: dict[str, Objective]
    budgets: tuple[Budget, ...]

    def of(self, scenario: str) -> list[Budget]:
        return [budget for budget in self.budgets if budget.scenario == scenario]


def unit_of(scenario: str) -> str:
    return ARRIVALS if scenario == OPEN_LOOP else USERS


def read(path: Path = FILE, served: Iterable[str] = MODELS) -> Budgets:
    """`served`: the models that there are. Raises Misread."""
    outline = Outline(path)
    names = tuple(sorted(served))
    models = _fields(outline, (), outline.values, ("models",), ("models",))["models"]
    _fields(outline, ("models",), models, names, (), "model")
    objectives: dict[str, Objective] = {}
    budgets: dict[tuple[str, str, str], Budget] = {}
    for model, entry in models.items():
        where: Where = ("models", model)
        _fields(outline, where, entry, ("objective", "budgets"), ("objective", "budgets"))
        objectives[model] = _objective(outline, (*where, "objective"), entry["objective"])
        for at, each in enumerate(_items(outline, (*where, "budgets"), entry["budgets"])):
            budget = _budget(outline, (*where, "budgets", at), model, each)
            if budgets.setdefault((model, budget.scenario, budget.transport), budget) is not budget:
                raise outline.misread((*where, "budgets", at), f"a second budget of {budget.model} for it: {budget}")
    return Budgets(objectives, tuple(budgets.values()))


def _objective(outline: Outline, where: Where, value: Any) -> Objective:
    fields = _fields(outline, where, value, OBJECTIVE, OBJECTIVE)
    errors, late = (_objective_share(outline, (*where, name), fields[name]) for name in SHARES)
    return Objective(errors, late, _above_zero(outline, (*where, "late_after"), fields["late_after"], MS))


def _objective_share(outline: Outline, where: Where, text: object) -> float:
    found = _share(outline, where, text)
    if not 0 < found <= LARGEST_SHARE:
        raise outline.misread(where, f"{text!r} must be above 0 and at most {LARGEST_SHARE:.0%}")
    return found


def _budget(outline: Outline, where: Where, model: str, value: Any) -> Budget:
    fields = _fields(outline, where, value, BUDGET, ("scenario", "transport", "load", *SHARES))
    scenario = _one_of(outline, (*where, "scenario"), fields["scenario"], SCENARIOS)
    transport = _one_of(outline, (*where, "transport"), fields["transport"], TRANSPORTS)
    load = _above_zero(outline, (*where, "load"), fields["load"], unit_of(scenario))
    if scenario != OPEN_LOOP and load != int(load):
        raise outline.misread((*where, "load"), f"{fields['load']!r}: a part of a user sends nothing")
    if CPU in fields and scenario != OPEN_LOOP:
        raise outline.misread((*where, CPU), f"only of {OPEN_LOOP}: the others mix models and transports")
    limits = {name: _limit(outline, (*where, name), name, fields[name]) for name in LIMITS if name in fields}
    return Budget(model, transport, scenario, load, limits)


def _limit(outline: Outline, where: Where, name: str, text: object) -> float:
    return _share(outline, where, text) if name in SHARES else _above_zero(outline, where, text, ECHOES)


def _share(outline: Outline, where: Where, text: object) -> float:
    try:
        return share(text)
    except ValueError as error:
        raise outline.misread(where, error) from None


def _above_zero(outline: Outline, where: Where, text: object, unit: str) -> float:
    try:
        number, _ = quantity(text, unit)
    except ValueError as error:
        raise outline.misread(where, error) from None
    if number == 0:
        raise outline.misread(where, f"{text!r} must be above 0")
    return number


def _one_of(outline: Outline, where: Where, text: object, allowed: Iterable[str]) -> str:
    if text not in tuple(allowed):
        raise outline.misread(where, f"{text!r} is none of {', '.join(allowed)}")
    return str(text)


def _items(outline: Outline, where: Where, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise outline.misread(where, "it must be a list with at least one budget")
    return value


def _fields(
    outline: Outline, where: Where, value: Any, known: Iterable[str], needed: Iterable[str], what: str = "field"
) -> dict[str, Any]:
    known = tuple(known)
    if not isinstance(value, dict) or not value:
        raise outline.misread(where, f"it must have fields: {', '.join(known)}")
    for name in value:
        if name not in known:
            raise outline.misread((*where, name), f"unknown {_kind(name, what)}; there are {', '.join(known)}")
    for name in needed:
        if name not in value:
            raise outline.misread(where, f"{name} is missing")
    return value


def _kind(name: str, what: str) -> str:
    return "percentile" if name[:1] == "p" and name[1:].replace(".", "").isdigit() else what


__all__ = ["FILE", "Budget", "Budgets", "Misread", "Objective", "read", "unit_of"]
