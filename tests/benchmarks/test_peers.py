"""The comparison with other servers: what they are asked, what counts as an answer, what the result says."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb

from benchmarks import models, report
from benchmarks.load import GrpcTarget, Load
from benchmarks.peers import asks, base, environments, rounds, told, triton, usage
from benchmarks.peers.__main__ import _parse, main, plan_of
from benchmarks.peers.asks import CORNER, INPUTS, PRODUCT, Ask
from benchmarks.peers.base import Peer, Served
from benchmarks.peers.registry import GOALS, OURS, PEERS
from benchmarks.peers.rounds import FORMS, GRPC, IMAGE, IMAGE_GRPC, REST, Failure, Measured, Plan, Seen
from benchmarks.processes import echo
from tests.running import alive

BASE = "http://127.0.0.1:1"


# --- the registry -------------------------------------------------------------------------------------------------


def test_every_server_that_is_promised_is_there() -> None:
    """Triton and its proxy, MLServer, LitServe, BentoML, Ray Serve in both modes, Penstock in both shapes."""
    assert set(PEERS) == {
        "triton", "pytriton", "mlserver", "litserve", "bentoml", "ray", "ray-throughput",
        "penstock", "penstock-distributed",
    }  # fmt: skip
    assert all(name == peer.name for name, peer in PEERS.items())


def test_every_server_says_how_it_is_set_up() -> None:
    """In words for the result; one without a gRPC row says why."""
    assert all(peer.settings and peer.title for peer in PEERS.values())
    assert {name for name, peer in PEERS.items() if not peer.no_grpc} == {"triton", "pytriton", "mlserver", *OURS}


def test_every_server_is_started_with_both_models() -> None:
    """At once, or each by itself where an idle one costs CPU."""
    for peer in PEERS.values():
        assert sorted(model for start in peer.starts for model in start) == [CORNER, PRODUCT]


def test_goals_are_of_servers_that_are_measured() -> None:
    """Each foreign server is compared with both shapes of ours."""
    assert {goal.other for goal in GOALS} == set(PEERS) - set(OURS)
    assert {(goal.ours, goal.other) for goal in GOALS} == {(o, p) for o in OURS for p in set(PEERS) - set(OURS)}
    assert {goal.callers for goal in GOALS} <= set(Plan().callers)


def test_pins_are_exact_hashed_and_name_no_host() -> None:
    """Each environment is made of the same bytes everywhere."""
    sets = sorted(environments.PINS.glob("*.in"))
    assert [path.stem for path in sets] == ["bentoml", "litserve", "mlserver", "ray", "triton"]
    for path in sets:
        pins = path.with_suffix(".txt").read_text()
        assert "--hash=sha256:" in pins
        assert "://" not in pins
        assert all("==" in line for line in pins.splitlines() if line[:1].isalnum())


def test_programs_of_other_servers_are_there() -> None:
    """Each is valid Python of the oldest version that it runs on."""
    programs = sorted(base.SERVED.glob("*.py"))
    assert len(programs) == 6
    for program in programs:
        compile(program.read_text(), program.name, "exec")


def test_an_environment_has_a_folder_for_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pins, another folder; one that is ready is not made again."""
    monkeypatch.setattr(environments, "PINS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[Path] = []

    def make(place: Path, *_: object) -> None:
        place.mkdir(parents=True)
        made.append(place)

    monkeypatch.setattr(environments, "_make", make)
    for pins in ("a==1", "a==1", "a==2"):
        (tmp_path / "some.txt").write_text(pins)
        assert environments.environment("some").parent.parent in made
    assert len(set(made)) == len(made) == 2


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, which the result shows in place of figures."""
    monkeypatch.setattr(environments, "PINS", tmp_path)
    monkeypatch.setitem(environments.INTERPRETERS, "some", "/nowhere/python3")
    (tmp_path / "some.txt").write_text("a==1")
    with pytest.raises(RuntimeError, match="there is no /nowhere/python3"):
        environments.environment("some")
    with pytest.raises(RuntimeError, match="its packages cannot be had here: no such thing"):
        environments._run([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


# --- what is asked ------------------------------------------------------------------------------------------------


def test_v2_requests_carry_the_tensor_in_json_or_binary() -> None:
    """And the answer is read from either."""
    ask = asks.v2_json(BASE, PRODUCT, {"Authorization": "Bearer k"})
    assert ask.target.url == f"{BASE}/v2/models/product/infer"
    assert ask.target.headers["Authorization"] == "Bearer k"
    assert orjson.loads(ask.target.body)["inputs"][0]["data"] == [0.0, 1.0, 2.0, 3.0]
    assert ask.read(b'{"outputs": [{"name": "y", "data": [1.5, 2]}]}', {}) == [1.5, 2.0]
    image = asks.v2_binary(BASE, CORNER)
    assert image.target.body.endswith(INPUTS[CORNER].tobytes())
    numbers = np.array([1.5, 2], np.float32).tobytes()
    assert image.read(b"{}" + numbers, {models.BINARY_LENGTH.lower(): "2"}) == [1.5, 2.0]


def test_other_servers_get_their_own_json() -> None:
    """A row for those that batch single items, rows for those that batch arrays."""
    row, rows = asks.row_json(f"{BASE}/product", PRODUCT), asks.rows_json(f"{BASE}/product", PRODUCT)
    assert orjson.loads(row.target.body) == {"x": [0.0, 1.0, 2.0, 3.0]}
    assert orjson.loads(rows.target.body) == {"x": [[0.0, 1.0, 2.0, 3.0]]}
    assert row.read(b'{"y": [1, 2]}', {}) == rows.read(b"[[1, 2]]", {}) == [1.0, 2.0]
    assert np.shape(orjson.loads(asks.row_json(BASE, CORNER).target.body)["x"]) == (3, 224, 224)


def test_grpc_requests_are_raw_and_answers_of_both_kinds_are_read() -> None:
    """Some servers answer in raw bytes, some in typed contents."""
    target = asks.v2_grpc("127.0.0.1:1", PRODUCT)
    request = pb.ModelInferRequest.FromString(target.request)
    assert (request.model_name, request.raw_input_contents) == (PRODUCT, [INPUTS[PRODUCT].tobytes()])
    raw = pb.ModelInferResponse(raw_output_contents=[np.array([1.5], np.float32).tobytes()])
    output = pb.ModelInferResponse.InferOutputTensor()
    output.contents.fp32_contents.append(1.5)
    typed = pb.ModelInferResponse(outputs=[output])
    assert asks._read_grpc(raw.SerializeToString()) == asks._read_grpc(typed.SerializeToString()) == [1.5]


def test_a_right_answer_is_the_product() -> None:
    """Of the same weights that every server reads; the image's answer is its first four numbers."""
    assert asks.right(PRODUCT) == pytest.approx((INPUTS[PRODUCT] @ models.product_weights()).ravel().tolist())
    assert asks.right(CORNER) == [0.0, 1.0, 2.0, 3.0]
    asks._compare(asks.right(PRODUCT), PRODUCT)
    for wrong in ([0.0] * 4, asks.right(PRODUCT)[:3], []):
        with pytest.raises(asks.Wrong):
            asks._compare(wrong, PRODUCT)


def test_an_answer_that_is_wrong_or_refused_is_told() -> None:
    """The echo sends the request back, which is no product; of what is no JSON it makes a 500."""
    with echo("benchmarks.echo") as unit:
        ask = asks.row_json(f"http://127.0.0.1:{unit.port}/product", PRODUCT)
        with pytest.raises(asks.Wrong, match="wrong"):
            asks.check_http(Ask(ask.target, lambda body, _: orjson.loads(body)["x"]), PRODUCT)
        with pytest.raises(asks.Refused, match="answered 500"):
            asks.check_http(ask._replace(target=ask.target._replace(body=b"{")), PRODUCT)


def test_a_grpc_answer_that_is_wrong_or_refused_is_told() -> None:
    """As over HTTP."""
    with echo("benchmarks.grpc_echo") as unit:
        target = asks.v2_grpc(f"127.0.0.1:{unit.port}", PRODUCT)
        with pytest.raises(asks.Wrong, match="wrong"):
            asks.check_grpc(target, PRODUCT)
        with pytest.raises(asks.Refused, match="over gRPC"):
            asks.check_grpc(GrpcTarget(target.address, b"\xff"), PRODUCT)


def test_tritons_configuration_names_the_shapes(tmp_path: Path) -> None:
    """One instance, batched without delay, and the same program for each model."""
    triton._model(tmp_path / PRODUCT)
    config = (tmp_path / PRODUCT / "config.pbtxt").read_text()
    assert "dynamic_batching {}" in config
    assert f"max_batch_size: {base.MAX_BATCH}" in config
    assert "dims: [4]" in config
    assert (tmp_path / PRODUCT / "1" / "model.py").exists()


# --- starting and ending ------------------------------------------------------------------------------------------

PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); {}"


def test_what_a_server_leaves_behind_is_ended_too() -> None:
    """Its children would go on using the cores of the next."""
    process = subprocess.Popen([sys.executable, "-c", PARENT.format("time.sleep(600)")])
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children
    base.end(process, signal.SIGTERM)
    assert process.poll() is not None
    assert not any(alive(child) for child in children)


@pytest.mark.parametrize(
    ("code", "said"), [("raise SystemExit('no such option')", "no such option"), ("raise SystemExit(3)", "nothing")]
)
def test_a_server_that_does_not_start_says_why(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words."""
    monkeypatch.setattr(base, "environment", lambda _: Path(sys.executable))
    with (
        pytest.raises(RuntimeError, match=said),
        base.foreign(
            "some",
            lambda site: base.Program([str(site.python), "-c", code]),
            lambda site: Served([], {PRODUCT: asks.row_json(f"{site.base}/x", PRODUCT)}),
            (PRODUCT,),
        ),
    ):
        pass


def test_the_cost_of_a_tree_counts_each_process_once() -> None:
    """Even where one root is within another's tree; one that is gone counts nothing."""
    with echo("benchmarks.echo") as unit:
        seen = usage.cpu_by_process([unit.pid, unit.pid])
        assert list(seen) == [unit.pid]
        used = usage.memory([unit.pid, unit.pid])
        assert 1 < used.pss <= used.rss
    assert usage.cpu_by_process([unit.pid]) == {}
    assert usage.cpu_between({1: 2.0, 2: 1.0}, {1: 2.5, 3: 0.25}) == 0.75


# --- rounds -------------------------------------------------------------------------------------------------------


def test_a_plan_asks_less_of_what_is_slower() -> None:
    """gRPC at the first, the middle and the last number of callers, images at few."""
    plan = Plan()
    assert plan.callers_of(REST) == (1, 8, 32, 128, 256)
    assert plan.callers_of(GRPC) == (1, 32, 256)
    assert plan.callers_of(IMAGE) == (1, 8)
    assert plan.callers_of(IMAGE_GRPC) == (1,)
    assert Plan(callers=(4,)).callers_of(IMAGE) == Plan(callers=(4,)).callers_of(GRPC) == (4,)


def _peer(name: str, log: list[str], error: Exception | None = None) -> Peer:
    """Of the registry by name, but it only says when it starts and ends."""

    @contextlib.contextmanager
    def serve(which: tuple[str, ...]) -> Iterator[Served]:
        log.append(name)
        if error:
            raise error
        yield Served([], {})

    return PEERS[name]._replace(serve=serve)


def test_rounds_alternate_and_a_failure_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails twice is left out; the others are measured all the same."""
    monkeypatch.setattr(rounds, "_targets", lambda *_: iter(()))
    log: list[str] = []
    broken = _peer("mlserver", log, RuntimeError("no such option\nmore"))
    measured = rounds.measure([_peer("triton", log), broken, _peer("ray", log)], Plan(rounds=3))
    assert log == ["triton", "mlserver", "ray", "ray", "mlserver", "triton", "triton", "ray"]
    assert measured.failures == [Failure(peer="mlserver", why="no such option")] * 2


def test_an_interrupted_run_tells_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """And that it was interrupted."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_visit", interrupted)
    measured = rounds.measure([PEERS["triton"]], Plan())
    assert measured == Measured([], [], interrupted=True)
    result = told.tell(["triton"], measured, Plan(), {"http": "wrk", "grpc": "ghz"}, 0, 0)
    assert "Interrupted before the end" in told.text(result)


def test_a_wrong_answer_ends_a_form_before_it_is_measured() -> None:
    """No load is put on it."""

    def wrong() -> None:
        raise asks.Wrong("its answer is wrong")

    def never(callers: int, seconds: int) -> Load:
        raise AssertionError("measured")

    into = Measured([], [])
    target = rounds.Target(REST, wrong, never, never)
    rounds._measure(PEERS["triton"], target, Served([], {}), 0, Plan(), into)
    assert into == Measured([], [Failure(peer="triton", form=REST, why="its answer is wrong")])


def test_a_measurement_is_taken_beside_the_echo() -> None:
    """Before it or after it, by turns; the ratio is of the two."""
    order: list[str] = []

    def load(name: str, requests: int) -> Load:
        order.append(name)
        return Load(requests, 1.0, 2.0, 3.0, 0)

    target = rounds.Target(REST, lambda: None, lambda *_: load("server", 50), lambda *_: load("echo", 100))
    one = rounds._seen(PEERS["triton"], target, Served([], {}), 8, 0, Plan())
    two = rounds._seen(PEERS["triton"], target, Served([], {}), 8, 1, Plan())
    assert order == ["echo", "server", "server", "echo"]
    assert (one.echoes, two.echoes, one.callers) == (0.5, 0.5, 8)
    alone = rounds._seen(PEERS["triton"], target._replace(bare=None), Served([], {}), 8, 0, Plan())
    assert alone.echoes == 0


# --- the result ---------------------------------------------------------------------------------------------------


def _seen(peer: str, number: int, rate: float, form: str = REST, callers: int = 128, bad: int = 0) -> Seen:
    return Seen(
        peer=peer, form=form, callers=callers, number=number, rate=rate, p50_ms=1, p99_ms=2, bad=bad, cpu_us=30,
        rss_mib=100, pss_mib=80, echoes=rate / 1000,
    )  # fmt: skip


def _measured() -> Measured:
    """Penstock 2, 3, 4 times Triton; MLServer's gRPC wrong, LitServe with a bad answer, Ray not to be had."""
    seen = [_seen("triton", number, 1000) for number in range(3)]
    seen += [_seen("penstock", number, 1000 * (number + 2)) for number in range(3)]
    seen += [_seen("mlserver", 0, 100), _seen("litserve", 0, 100, bad=7), _seen("bentoml", 0, 0)]
    failures = [
        Failure(peer="mlserver", form=GRPC, why="its answer to product is wrong"),
        Failure(peer="ray", why="its packages cannot be had here"),
        Failure(peer="triton", why="it did not answer within 150 s"),
    ]
    return Measured(seen, failures)


NAMES = ["penstock", "triton", "mlserver", "litserve", "bentoml", "ray"]


def _told() -> told.Told:
    return told.tell(NAMES, _measured(), Plan(), {"http": "wrk", "grpc": "ghz"}, 2.0, 1200)


def test_a_cell_is_the_median_of_its_rounds() -> None:
    """And keeps them all."""
    (ours,) = [cell for cell in told.cells(_measured()) if cell.peer == "penstock"]
    assert (ours.rate, ours.echoes, ours.rates, ours.void) == (3000, 3.0, [2000, 3000, 4000], "")


def test_what_is_wrong_not_2xx_or_unanswered_is_void() -> None:
    """A round in which a server did not start takes nothing from the others."""
    voids = {(cell.peer, cell.form): cell.void for cell in told.cells(_measured())}
    assert voids == {
        ("penstock", REST): "",
        ("triton", REST): "",
        ("mlserver", REST): "",
        ("mlserver", GRPC): "its answer to product is wrong",
        ("litserve", REST): "7 answers were not 2xx",
        ("bentoml", REST): "a round had no answer at all",
    }


def test_goals_are_ratios_within_a_round() -> None:
    """Each side in echoes of its own minute; a void side makes the ratio void."""
    rows = {row.what: row for row in _told().goals}
    beside = rows["Penstock, embedded, beside Triton 2.51, c=128"]
    assert (beside.value, beside.rounds, beside.met) == (3.0, [2.0, 3.0, 4.0], True)
    assert rows["Penstock, embedded, beside LitServe 0.2.19, c=128"].void == "7 answers were not 2xx"
    assert not any("Ray" in what for what in rows)


def test_the_tables_miss_no_server() -> None:
    """One without figures says why in one sentence, in the table and in the list of settings."""
    text = told.text(_told())
    assert "| Penstock, embedded | 3,000 (3 e), 1 / 2 | 30 | 100 (80) |" in text
    assert "| Ray Serve 2.60 | its packages cannot be had here |  |  |" in text
    assert "| LitServe 0.2.19 | void: 7 answers were not 2xx |" in text
    assert "| MLServer 1.7.1 | void: its answer to product is wrong |" in text
    assert "| LitServe 0.2.19 | no gRPC |" in text
    assert "**No figures: its packages cannot be had here.**" in text
    assert "**In 1 of the rounds it could not be measured.**" in text
    assert "load 2 before" in text
    assert all(PEERS[name].settings in text for name in NAMES)


def test_every_line_of_a_table_has_all_its_columns() -> None:
    """Markdown shows no table whose lines differ."""
    for block in told.text(_told()).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_a_result_is_kept_as_json_table_and_plot(tmp_path: Path) -> None:
    """The JSON read back is the same result; an empty one is kept too."""
    path = told.save(_told(), tmp_path)
    assert told.load(path) == _told_at(told.load(path).date)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md", ".png"}
    empty = told.tell(["ray"], Measured([], []), Plan(), {"http": "wrk", "grpc": "ghz"}, 0, 0)
    assert empty.servers[0].missing == "it was not reached before the end"
    assert told.save(empty, tmp_path).exists()


def _told_at(date: str) -> told.Told:
    again = _told()
    again.date = date
    return again


def test_the_docs_show_the_result_that_they_name() -> None:
    """To the letter; before there is one, they show none."""
    page = (report.ROOT / "docs" / "performance.md").read_text()
    shown = told.SHOWN.search(page)
    assert shown
    assert shown["name"] == "none" or told.show(shown["name"], page) == page


def test_a_page_is_given_tables_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of what it showed."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    name = told.save(_told(), tmp_path).name
    page = told.show(name, "before\n<!-- peers: none -->\nold\n<!-- end of the peers -->\nafter\n")
    assert page.startswith(f"before\n<!-- peers: {name} -->\nMeasured ")
    assert page.endswith("-peers.png)\n<!-- end of the peers -->\nafter\n")
    assert told.show(name, page) == page


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "penstock,torchserve"], "no server 'torchserve'; there are penstock, "),
        (["--forms", "soap"], "no form 'soap'; there are rest, "),
        (["--callers", "1,many"], "'many' is no number above 0"),
        (["--rounds", "0"], "'0' is no number above 0"),
    ],
)
def test_what_is_not_known_is_a_usage_error(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """That lists what there is; nothing is started."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_can_be_narrowed_and_lengthened() -> None:
    """In the registry's order, whatever order it was asked in."""
    asked = _parse(["--quick", "--only", "mlserver,penstock", "--forms", "grpc", "--callers", "32,1", "--seconds", "5"])
    assert asked.only == ["penstock", "mlserver"]
    assert plan_of(asked) == Plan(rounds=1, seconds=5, callers=(1, 32), forms=(GRPC,), quick=True)
    assert plan_of(_parse([])) == Plan()
    assert plan_of(_parse(["--rounds", "5"])).rounds == 5
    assert isinstance(asked, argparse.Namespace)
    assert Plan().forms == tuple(FORMS)
