"""The simulator is right where the answer is known, and its criteria can fail."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.simulation import acceptance, central, checks, curves, knee, optimum, penstock, rules, told, trials
from benchmarks.simulation.__main__ import PARTS, main
from benchmarks.simulation.acceptance import QUICK
from benchmarks.simulation.arrivals import PROCESSES, Mix, Request, trace
from benchmarks.simulation.clock import MS, SECOND, Clock
from benchmarks.simulation.device import Device
from benchmarks.simulation.scene import HEAVY, Scene, best_fixed, production, ruled
from core.errors import Hopeless
from gateway.admission import Admission
from gateway.batching.entry import Entry
from gateway.batching.policy import Decision, Policy
from gateway.batching.queue import NEVER

DEVICE = Device(0.010, 0.002, 4)
"""12 to 18 ms."""


def asked(*at_and_within: tuple[float, float], rows: int = 1) -> list[Request]:
    return [Request(int(at * MS), rows, int((at + within) * MS)) for at, within in at_and_within]


# --- the simulator itself -----------------------------------------------------------------------------------------


def test_time_jumps_from_event_to_event_in_the_order_asked_for() -> None:
    """Those of one instant keep their order; what is past happens now."""
    clock = Clock()
    seen: list[str] = []
    clock.at(5, seen.append, "b")
    clock.at(5, seen.append, "c")
    clock.at(1, seen.append, "a")
    clock.run(4)
    assert (clock.now, seen) == (1, ["a"])
    clock.run()
    assert (clock.now, seen) == (5, ["a", "b", "c"])


@pytest.mark.parametrize("check", [checks.check_md1, checks.check_penstock])
def test_it_agrees_with_the_textbook_on_md1(check: object) -> None:
    """Within 1 %, production's policy one by one too."""
    assert callable(check)
    assert sum(check(20_000, 0.3, seed) for seed in range(2)) / 2 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("servers", [1, 2])
def test_it_agrees_with_the_textbook_on_mm1_and_mm2(servers: int) -> None:
    """Within 1 %."""
    ratios = [checks.check_mm(servers, 30_000, 0.3, seed) for seed in range(4)]
    assert sum(ratios) / 4 == pytest.approx(1, abs=0.01)


def test_a_simulator_that_is_wrong_is_seen_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services a twentieth too long are beyond 1 %."""
    monkeypatch.setattr(Device, "time", lambda self, rows, chance: round(1.05 * self.seconds(rows) * SECOND))
    assert checks.check_md1(10_000, 0.3, 0) != pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", [*PROCESSES, HEAVY])
def test_traces_have_the_rate_asked_for_and_depend_on_the_seed_alone(kind: str) -> None:
    scene = Scene(kind, load=0.5, requests=20_000)
    made = scene.trace()
    assert sum(request.rows for request in made) / scene.seconds == pytest.approx(scene.rate, rel=0.12)
    assert made == scene.trace()
    assert made != scene._replace(seed=2).trace()


def test_bursts_have_the_variation_asked_for() -> None:
    """CV² of the gaps, within a tenth."""
    made = trace(PROCESSES["bursty, CV² 4"], 1000, 100, Mix((1, 1)), 1)
    gaps = [b.at - a.at for a, b in pairwise(made)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2 == pytest.approx(4, rel=0.1)


def test_every_row_sent_is_good_late_or_refused() -> None:
    """Two gateways, four replicas, three times the knee, sizes mixed; and the same again gives the same."""
    scene = Scene(HEAVY, load=3, replicas=4, gateways=2, requests=300)
    total = production(scene).total
    assert total.sent == total.good + total.late + total.refused > 0
    again = production(scene).total
    assert (again.good, again.late) == (total.good, total.late)


# --- the optimum --------------------------------------------------------------------------------------------------


def test_the_optimum_of_hand_made_traces() -> None:
    """12 ms alone, 14 for two: both of a pair within 14; one of two that are due before that; five do not fit in four;
    and a clairvoyant waits for the second where serving the first at once would lose it."""
    assert optimum.best(asked((0, 14), (0, 14)), DEVICE) == 2
    assert optimum.best(asked((0, 13.9), (0, 13.9)), DEVICE) == 1
    assert optimum.best(asked(*[(0, 18.5)] * 5), DEVICE) == 4
    assert optimum.best(asked((0, 30), (5, 15)), DEVICE) == 2
    assert optimum.best(asked((0, 11)), DEVICE) == 0
    with pytest.raises(ValueError, match="13"):
        optimum.best(asked(*[(0, 10)] * 13), DEVICE)


def test_nobody_beats_the_optimum() -> None:
    """Neither production nor a rule with an oracle's times, on random traces."""
    for seed in range(8):
        made = trace(PROCESSES["Poisson"], 1.5 * DEVICE.limit, 10, Mix((0.03, 0.05)), seed)[:8]
        most = optimum.best(made, DEVICE)
        assert penstock.simulate(made, DEVICE).total.good <= most
        for makers in rules.contenders(rules.Terms(DEVICE, 0.04)).values():
            assert all(central.simulate(made, DEVICE, maker()).total.good <= most for maker in makers)


# --- the rules of others ------------------------------------------------------------------------------------------


def when_run(rule: central.Rule, *at_and_within: tuple[float, float]) -> list[int]:
    """Latencies in milliseconds of those in time, in the order of their answers."""
    ledger = central.simulate(asked(*at_and_within), DEVICE, rule)
    return [round(latency / MS) for latency in ledger.latencies]


def test_each_rule_does_what_its_source_says() -> None:
    """On an idle model of 10 + 2b ms: who waits for company, and how long."""
    terms = rules.Terms(DEVICE, 1.0)
    pair = ((0.0, 1000.0), (5.0, 1000.0))
    assert when_run(rules.Alone(terms), *pair) == [12, 19]
    assert when_run(rules.Fixed(terms, 4, 0.008), *pair) == [22, 17]
    assert when_run(rules.Fixed(terms, 2, 0.1), *pair) == [19, 14]
    assert when_run(rules.MLServer(terms, 0.008), *pair) == [22, 17]
    assert when_run(rules.Triton(terms, 0.0), *pair) == [12, 19]
    assert when_run(rules.Triton(terms, 0.1, (2, 4)), *pair) == [19, 14]
    assert when_run(rules.Clipper(terms, 0.5, 0.0), *pair) == [12, 19]
    assert when_run(rules.Edf(terms, False), *pair) == [12, 19]
    assert min(when_run(rules.BentoML(terms), *pair)) >= 12


def test_edf_serves_the_earliest_deadline_and_drops_the_hopeless() -> None:
    late = central.simulate(asked((0, 100), (1, 90), (2, 30), (3, 20)), Device(0.010, 0.002, 1),
                            rules.Edf(rules.Terms(Device(0.010, 0.002, 1), 0.1), False)).total  # fmt: skip
    assert (late.good, late.late) == (3, 1)


# --- the criteria, and how they fail ------------------------------------------------------------------------------


class Sluggish(Policy):
    """Sends nothing before a full batch waits, or the earliest deadline is near."""

    __slots__ = ()

    def decide(self, now: int, window: int, replicas: int = 1, gateways: int = 1, punctual: bool = False) -> Decision:
        waits = self.queue.rows < self.queue.capacity and (self.queue.due() or NEVER) - now > MS
        return super().decide(now, 0 if waits else window, replicas, gateways, punctual)


class Careless(Admission):
    """Lets everybody in."""

    __slots__ = ()

    def check(self, entry: Entry, now: int) -> Entry | None:
        return None


class Timid(Admission):
    """Refuses two of three."""

    __slots__ = ()

    def check(self, entry: Entry, now: int) -> Entry | None:
        if entry.arrived % 3:
            raise Hopeless("no")
        return super().check(entry, now)


class WithSluggish(penstock.Gateway):
    policy_class = Sluggish


class WithCareless(penstock.Gateway):
    admission_class = Careless


class WithTimid(penstock.Gateway):
    admission_class = Timid


class Nameless(penstock.Gateway):
    """Takes all tenants for one."""

    def tenant(self, request: Request) -> str:
        return ""


def test_production_is_near_the_optimum_and_a_sluggish_policy_is_not() -> None:
    (ours,) = acceptance.against_optimum(QUICK)
    (broken,) = acceptance.against_optimum(QUICK, WithSluggish)
    assert ours.met
    assert broken.met is False


def test_production_keeps_up_with_the_best_fixed_setting_and_a_timid_door_does_not() -> None:
    ours = acceptance.against_fixed(Scene(), QUICK, (0.5, 1.2))
    broken = acceptance.against_fixed(Scene(), QUICK, (0.5,), WithTimid)
    assert ours.met, ours
    assert broken.met is False


def test_production_answers_in_time_whom_it_accepts_and_a_careless_door_does_not() -> None:
    scene = Scene(replicas=2, gateways=2)
    ours = acceptance.lateness(scene, QUICK, (0.9, 2.0))[0]
    broken = acceptance.lateness(scene, QUICK, (2.0,), WithCareless)[0]
    assert ours.met, ours
    assert broken.met is False


def test_flooded_tenants_keep_their_share_and_lose_it_where_tenants_are_not_told_apart() -> None:
    ours = acceptance.fairness(Scene(), QUICK, 0.9)
    broken = acceptance.fairness(Scene(), QUICK, 0.9, Nameless)
    assert ours.met, ours
    assert broken.met is False


def test_a_gateway_that_takes_all_workers_for_its_own_is_late() -> None:
    """Why the outlook keeps to its share: four replicas of two gateways, 1.2 of the knee."""
    (broken,) = [trials._row("window", trial, trials.SCENES[3], QUICK) for trial in trials.WINDOWS[-1:]]
    (ours,) = [trials._row("window", trial, trials.SCENES[3], QUICK) for trial in trials.WINDOWS[:1]]
    assert ours.details["late %"] <= 1 < 10 < broken.details["late %"]


def test_batches_that_keep_no_distance_meet_busy_workers() -> None:
    """Four replicas, two gateways, deadlines of 2.5 batches, at the knee."""
    scene = trials.SCENES[5]._replace(requests=3000)
    assert production(scene).good_share > 0.96
    assert production(scene, gateway=trials.Close).good_share < 0.93


def test_no_number_of_replicas_resonates_with_the_turns_in_which_batches_are_dealt() -> None:
    """Where only parts of batches kept their distance, a tenth was lost with eight replicas at 0.7 of the knee."""
    assert production(Scene(load=0.7, replicas=8, target=4.65)).good_share >= 0.99


def test_holding_back_gains_where_deadlines_are_tight() -> None:
    """One embedded worker, deadlines of 2.5 batches, 1.2 of the knee."""
    rows = [trials._row("window", trial, trials.SCENES[0], QUICK) for trial in trials.WINDOWS[:2]]
    assert rows[0].value > 1.03 * rows[1].value


def test_the_knee_is_where_the_formula_says_and_a_wrong_formula_is_off() -> None:
    scene = Scene(requests=3000)
    expected = knee.formula(scene.device, 1, scene.target_s, 2 * scene.hop_s)
    found = knee.simulated(scene, 4)
    assert expected == pytest.approx(found, rel=0.1)
    assert 1.3 * expected != pytest.approx(found, rel=0.1)
    assert knee.formula(Device(0.02, 0.001, 1000), 2, 0.1, 0.0) == pytest.approx(2 / 0.001 * (1 - 0.02 * 1.5 / 0.1))


def test_the_best_fixed_setting_is_the_best_of_the_grid() -> None:
    scene = Scene(load=1.0, requests=200)
    made = scene.trace()
    shares = [ruled(scene, maker, made).good_share for _, maker in rules.grid(scene.terms)]
    assert best_fixed(scene, made)[0] == max(shares)


# --- the result ---------------------------------------------------------------------------------------------------


def test_a_run_is_kept_as_json_table_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the JSON read back is the same result."""
    monkeypatch.setattr(curves, "LOADS", (0.5, 0.5, 0.5, 1.0))
    monkeypatch.setitem(PARTS, "ageing", lambda size: [acceptance.against_fixed(Scene(), size, (0.5,))])
    assert main(["--quick", "--only", "ageing", "--to", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    kept = told.load(path)
    assert kept.quick
    assert kept.parameters["max batch"] == 32
    assert "not to be quoted" in path.with_suffix(".md").read_text()


def test_only_known_parts_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--only", "optimum,gpu"])
    assert stopped.value.code == 2
    assert "no part 'gpu'" in capsys.readouterr().err


def test_curves_are_drawn_for_each_scene(tmp_path: Path) -> None:
    curve = curves.Curve(scene="s", system="Penstock", loads=[0.5, 1], goodput=[0.5, 1], p99_ms=[1, 2])
    path = told.save(told.tell([], [curve], {}, True, 0.0), tmp_path)
    assert path.with_name(f"{path.stem}-goodput-1.png").exists()


def test_the_docs_show_a_result_as_it_was_simulated() -> None:
    """The table of docs/batching.md is that of the result file it names, to the letter."""
    page = (report.ROOT / "docs" / "batching.md").read_text()
    shown = told.SHOWN.search(page)
    assert shown
    assert told.show(shown["name"], page) == page
