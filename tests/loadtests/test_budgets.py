"""The budgets file: what it may say, and that whoever writes something else is told where and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtests.budgets import BUDGET, FILE, OBJECTIVE, Budget, Misread, Objective, read
from loadtests.shapes import IN_CI, OPEN_LOOP, SCENARIOS

GOOD = """\
models:
  digits:
    objective: {errors: 0.1 %, late: 1 %, late_after: 50 ms}
    budgets:
      - scenario: open-loop
        transport: rest-json
        load: 300 arrivals/s
        p50: 3 echoes
        p99: 12.5 echoes
        cpu: 3.15 echoes
        errors: 0.1 %
        late: 2 %
      - {scenario: spike, transport: grpc, load: 4 users, errors: 0 %, late: 5 %}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "budgets.yaml"
    file.write_text(text)
    return file


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """Quantities become numbers: echoes as they are, percents as shares."""
    found = read(written(tmp_path, GOOD))
    assert found.objectives == {"digits": Objective(errors=0.001, late=0.01, late_after_ms=50.0)}
    limits = {"p50": 3.0, "p99": 12.5, "cpu": 3.15, "errors": 0.001, "late": 0.02}
    assert found.of(OPEN_LOOP) == [Budget("digits", "rest-json", OPEN_LOOP, 300.0, limits)]
    assert found.of("spike") == [Budget("digits", "grpc", "spike", 4.0, {"errors": 0.0, "late": 0.05})]
    assert [str(budget) for budget in found.budgets] == [
        "digits rest-json, open-loop at 300 arrivals/s",
        "digits grpc, spike at 4 users",
    ]


@pytest.mark.parametrize(
    ("instead_of", "stands", "line", "told"),
    [
        ("  digits:", "  wine:", 2, "models.wine: unknown model; there are digits, iris"),
        ("p50: 3 echoes", "p50: 3 ms", 8, "p50: '3 ms' is in 'ms': the unit must be 'echoes'"),
        ("p50: 3 echoes", "p50: 3", 8, "p50: '3' is in 'no unit': the unit must be 'echoes'"),
        ("p50: 3 echoes", "p50: three echoes", 8, "'three echoes' is no quantity: write a number and 'echoes'"),
        ("p50: 3 echoes", "p50: .inf", 8, "'.inf' is no quantity"),
        ("p50: 3 echoes", "p50: -3 echoes", 8, "'-3 echoes' is negative"),
        ("p50: 3 echoes", "p50: 0 echoes", 8, "'0 echoes' must be above 0"),
        ("p50: 3 echoes", "p50: [3 echoes]", 8, "is no quantity"),
        ("p50: 3 echoes", "p42: 3 echoes", 8, "p42: unknown percentile; there are scenario, transport, load, p50, p95"),
        ("p50: 3 echoes", "median: 3 echoes", 8, "budgets[0].median: unknown field; there are"),
        ("p50: 3 echoes", "p99: 3 echoes", 9, "budgets[0].p99: it stands here twice"),
        ("errors: 0.1 %\n", "errors: 0.1 echoes\n", 11, "the unit must be '%'"),
        ("errors: 0.1 %\n", "errors: 101 %\n", 11, "'101 %' is more than all"),
        ("        errors: 0.1 %\n", "", 5, "budgets[0]: errors is missing"),
        ("load: 300 arrivals/s", "load: 300 users", 7, "'300 users' is in 'users': the unit must be 'arrivals/s'"),
        ("load: 4 users", "load: 4 arrivals/s", 13, "the unit must be 'users'"),
        ("load: 4 users", "load: 4.5 users", 13, "a part of a user sends nothing"),
        ("load: 4 users", "load: 4 users, cpu: 3 echoes", 13, "budgets[1].cpu: only of open-loop"),
        ("transport: rest-json", "transport: soap", 6, "'soap' is none of rest-json, rest-binary, grpc"),
        ("scenario: open-loop", "scenario: storm", 5, "'storm' is none of open-loop, steady, spike"),
        ("scenario: spike, transport: grpc, load: 4 users", "scenario: open-loop, transport: rest-json,"
         " load: 9 arrivals/s", 13, "a second budget of digits"),
        ("late_after: 50 ms", "late_after: 50 s", 3, "the unit must be 'ms'"),
        ("late: 1 %", "late: 10 %", 3, "objective.late: '10 %' must be above 0 and at most 5%"),
        (", late_after: 50 ms", "", 3, "objective: late_after is missing"),
        ("models:", "model:", 1, "model: unknown field; there are models"),
        (GOOD, "", 1, "the file: it must have fields: models"),
        (GOOD, "models: {digits: {objective: {errors: 1 %, late: 1 %, late_after: 5 ms}, budgets: []}}", 1,
         "it must be a list with at least one budget"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_of_by_place_and_by_what_is_allowed(
    instead_of: str, stands: str, line: int, told: str, tmp_path: Path
) -> None:
    """The file, the line, the field, what is wrong with it, what would be right."""
    file = written(tmp_path, GOOD.replace(instead_of, stands, 1))
    with pytest.raises(Misread) as error:
        read(file)
    assert str(error.value).startswith(f"{file}:{line}: ")
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["models: [", "models: {a: b}: c", "\t- x", "a: !!python/object:os.system {}"])
def test_what_is_no_such_yaml_is_told_of(text: str, tmp_path: Path) -> None:
    """Nothing in a file becomes an object of Python's."""
    with pytest.raises(Misread, match=r"budgets\.yaml"):
        read(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    """Not there, or no text."""
    with pytest.raises(Misread, match=r"none\.yaml: No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Misread, match=r"binary\.yaml: it is not UTF-8"):
        read(tmp_path / "binary.yaml")


def test_the_page_documents_the_schema(tmp_path: Path) -> None:
    """Its example is a good file; every field and scenario that there is stands in it."""
    page = (FILE.parents[1] / "docs" / "load-tests.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(read(written(tmp_path, example)).budgets) == 2
    fields = [f"objective.{name}" for name in OBJECTIVE] + [f".{name}`" for name in BUDGET]
    assert [name for name in (*fields, *(f"`{name}`" for name in SCENARIOS)) if name not in page] == []


def test_the_committed_file_holds_what_the_load_tests_need() -> None:
    """Every scenario has budgets, every transport too; the gate has a median, a p99 and CPU to go by."""
    found = read(FILE)
    assert [name for name in SCENARIOS if not found.of(name)] == []
    in_ci = [budget for budget in found.budgets if budget.scenario in IN_CI]
    assert {budget.transport for budget in in_ci} == {"rest-json", "rest-binary", "grpc"}
    assert {name for budget in in_ci for name in budget.limits} >= {"p50", "p95", "p99", "cpu", "errors", "late"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [1, 1]\nmodels: [*a, *a]\n", "aliases are not taken"),
        ("models: " + "[" * 5000, "nested too deeply"),
        ("models: {[digits]: 1}\n", "a name must be a word"),
    ],
)
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, text: str, told: str) -> None:
    """However much it would stand for."""
    with pytest.raises(Misread, match=told):
        read(written(tmp_path, text))
