"""The alert rules: made from the budgets file, accepted by Prometheus, and they fire when a budget burns."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import penstock
import pytest
import yaml

from core.settings import Settings
from loadtests import alerts
from loadtests.alerts import BURNS, WINDOWS, main, rendered, rules
from loadtests.budgets import Budgets, Objective, read
from tests.running import RunningServer
from tests.watched import Metrics

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "deploy" / "alerts.yml"
ONE = Budgets({"digits": Objective(errors=0.001, late=0.01, late_after_ms=50)}, ())


def group(name: str, budgets: Budgets = ONE) -> list[dict[str, Any]]:
    (found,) = (each["rules"] for each in rules(budgets)["groups"] if each["name"] == name)
    return list(found)


def test_the_committed_rules_are_those_of_the_budgets_file() -> None:
    """After a change of loadtests/budgets.yaml: `make alerts`."""
    assert COMMITTED.read_text() == rendered(read())


def test_each_objective_has_three_burn_rates() -> None:
    """The factor times what is allowed, over a long and a short window, both of which are recorded."""
    recorded = {rule["record"] for rule in group("penstock-shares")}
    assert recorded == {
        f"penstock:{name}:share_{window}" for name in ("errors", "expired", "late") for window in WINDOWS
    }
    errors = [rule for rule in group("penstock-burn") if rule["alert"] == "PenstockErrors"]
    assert [(rule["expr"].replace('{model="digits"}', ""), rule["labels"]["severity"]) for rule in errors] == [
        ("penstock:errors:share_1h > 0.0144 and penstock:errors:share_5m > 0.0144", "page"),
        ("penstock:errors:share_6h > 0.006 and penstock:errors:share_30m > 0.006", "page"),
        ("penstock:errors:share_3d > 0.001 and penstock:errors:share_6h > 0.001", "ticket"),
    ]
    assert len(group("penstock-burn")) == 3 * len(BURNS)


def test_late_is_what_the_bucket_of_the_objective_lacks() -> None:
    """By transport; the bound in seconds, as Prometheus writes it."""
    (rule,) = (rule for rule in group("penstock-shares") if rule["record"] == "penstock:late:share_5m")
    assert 'penstock_request_duration_seconds_bucket{model="digits",stage="total",le="0.05"}' in rule["expr"]
    assert rule["labels"] == {"model": "digits"}


def test_an_objective_that_no_burn_could_reach_is_refused() -> None:
    """14.4 times the largest share that a budgets file may name is still a share."""
    from loadtests.budgets import LARGEST_SHARE

    assert max(burn.factor for burn in BURNS) * LARGEST_SHARE < 1


def test_bounds_of_objectives_are_buckets_of_the_server() -> None:
    """An alert can count only what has a bucket: PENSTOCK_METRICS_BUCKETS_MS holds every `late_after`."""
    bounds = Settings().metrics_buckets_ms
    assert [each.late_after_ms for each in read().objectives.values() if each.late_after_ms not in bounds] == []


@pytest.fixture
def promtool(prometheus: Metrics) -> str:
    """It comes with Prometheus."""
    found = shutil.which("promtool")
    assert found is not None
    return found


def test_prometheus_takes_the_rules(promtool: str) -> None:
    """`promtool check rules`, which warns of duplicates too."""
    done = subprocess.run([promtool, "check", "rules", str(COMMITTED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_a_burning_budget_pages_and_a_kept_one_does_not(tmp_path: Path, promtool: str) -> None:
    """In Prometheus's own evaluation: 2 % of errors for ten minutes after an hour of them page, 0.05 % do nothing, and
    so for answers over 50 ms, whose alert names the transport; that no bucket ends there is told, too."""
    (tmp_path / "alerts.yml").write_text(rendered(ONE))
    (tmp_path / "test.yml").write_text(yaml.safe_dump(_scenes()))
    done = subprocess.run([promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _scenes() -> dict[str, Any]:
    burning = {"ok": 980, "failed": 20}, {"le": 800, "count": 1000}
    calm = {"ok": 99950, "failed": 50}, {"le": 99900, "count": 100000}
    return {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [_scene(*burning, fires=True), _scene(*calm, fires=False), _scene_without_its_bucket()],
    }


def _scene_without_its_bucket() -> dict[str, Any]:
    """A server whose buckets end elsewhere."""
    (rule,) = group("penstock-unmeasured")
    labels = {"transport": "grpc"}
    return {
        "interval": "1m",
        "input_series": _timed({"le": 1000, "count": 1000}, bucket="0.1"),
        "alert_rule_test": [
            {
                "eval_time": "70m",
                "alertname": rule["alert"],
                "exp_alerts": [
                    {
                        "exp_labels": rule["labels"] | labels,
                        "exp_annotations": {
                            key: _filled(text, labels, "") for key, text in rule["annotations"].items()
                        },
                    }
                ],
            }
        ],
    }


def _scene(outcomes: dict[str, int], answers: dict[str, int], fires: bool) -> dict[str, Any]:
    """Per minute: requests by outcome, answers within 50 ms and all; what is to fire after 70 minutes."""
    counted = [
        {"series": f'penstock_requests_total{{model="digits",version="1",outcome="{name}"}}', "values": f"0+{each}x80"}
        for name, each in outcomes.items()
    ]
    expected = {
        "PenstockErrors": {"model": "digits"},
        "PenstockLate": {"model": "digits", "transport": "grpc"},
    }
    return {
        "interval": "1m",
        "input_series": counted + _timed(answers),
        "alert_rule_test": [
            {"eval_time": "70m", "alertname": alert, "exp_alerts": _fired(alert, labels) if fires else []}
            for alert, labels in expected.items()
        ]
        + [{"eval_time": "70m", "alertname": "PenstockLateUnmeasured", "exp_alerts": []}],
    }


def _timed(answers: dict[str, int], bucket: str = "0.05") -> list[dict[str, str]]:
    """Per minute: answers within a bucket, and all."""
    labels = 'model="digits",version="1",stage="total",transport="grpc"'
    name = "penstock_request_duration_seconds"
    return [
        {"series": f'{name}_bucket{{{labels},le="{bucket}"}}', "values": f"0+{answers['le']}x80"},
        {"series": f"{name}_count{{{labels}}}", "values": f"0+{answers['count']}x80"},
    ]


def _fired(alert: str, labels: dict[str, str]) -> list[dict[str, Any]]:
    """What burns at 20 times (both severities, and the ticket's windows are not full yet but see the same share)."""
    (name,) = {rule["alert"] for rule in group("penstock-burn") if rule["alert"] == alert}
    return [
        {
            "exp_labels": rule["labels"] | labels,
            "exp_annotations": {
                key: _filled(text, labels, "2%" if alert == "PenstockErrors" else "20%")
                for key, text in rule["annotations"].items()
            },
        }
        for rule in group("penstock-burn")
        if rule["alert"] == name
    ]


def _filled(text: str, labels: dict[str, str], value: str) -> str:
    text = text.replace("{{ $value | humanizePercentage }}", value)
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda match: labels[match[1]], text)


def test_rules_of_a_bad_file_are_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the reason, and the file of rules stays as it was."""
    (tmp_path / "budgets.yaml").write_text("models: {wine: {}}")
    (tmp_path / "alerts.yml").write_text("as it was")
    assert main(tmp_path / "alerts.yml", tmp_path / "budgets.yaml") == 2
    assert "unknown model" in capsys.readouterr().err
    assert (tmp_path / "alerts.yml").read_text() == "as it was"
    assert main(tmp_path / "alerts.yml") == 0
    assert (tmp_path / "alerts.yml").read_text().startswith(alerts.HEADER)


def test_every_series_of_the_rules_is_found_at_a_scraped_server(
    running_server: RunningServer, prometheus: Metrics
) -> None:
    """No expression of the rules is without a result: names, labels and the bound of each bucket are those that the
    server exposes."""
    with penstock.connect(running_server.url, api_key=running_server.api_key) as ps:
        for model, value in (("digits", np.zeros((1, 8, 8))), ("iris", np.ones((1, 4)))):
            ps.predict(model, value)
        (told,) = (running_server.home / "metrics").glob("embedded-*.json")
        port = int(json.loads(told.read_text())[0]["targets"][0].rpartition(":")[2])
        recorded = [rule["expr"] for rule in group("penstock-shares")]
        deadline = time.monotonic() + 90
        with prometheus.scraped(port, process="embedded"):
            while missing := [each for each in recorded if not prometheus.value(each)]:
                ps.predict("digits", np.zeros((1, 8, 8)))
                assert time.monotonic() < deadline, missing
                time.sleep(1)
