"""What the live page says of run folders, whole and damaged."""

import contextlib
import json
import math
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from monitoring.live.access import bearer, host_is_local, is_local, matches
from monitoring.live.alerts import read_alerts
from monitoring.live.endpoints import Answer, Target, may_ask, parse, rates, read_targets
from monitoring.live.headline import seconds_left
from monitoring.live.phases import Counted
from monitoring.live.run import LiveRun
from monitoring.live.state import judge
from monitoring.metrics import Metrics
from monitoring.run_metrics import RunMetrics
from tests.monitoring.live_runs import add, evaluate, phase, record, write_run


def looked(folder):
    run = LiveRun(folder.parent, folder)
    run.study()
    return run


def test_a_run_is_summed_up(tmp_path):
    folder = write_run(tmp_path, "run", methods=("fkd", "joint"), steps=2, seeds=(0, 1))
    evaluate(folder, "fkd", 0, 0, top1=0.5, map=0.25)
    evaluate(folder, "fkd", 0, 1, top1=0.75)
    evaluate(folder, "joint", 1, 0, top1=0.6)
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 50))
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-1/train", 100, loss=4.0))
    add(folder, "metrics.jsonl", record("joint/seed-1/step-1/train", 50, loss=3.0))
    add(folder, "events.jsonl", {"time": 5.0, "event": "notice", "message": "rank 0 fell"})
    run = looked(folder)
    view = run.detail(None, time.time())
    assert (view["done"], view["of"], view["state"]) == (3, 8, "stopped")
    assert view["share"] == pytest.approx((3 + 0.9 * 0.5) / 8)
    assert (view["loss"], view["iteration"]) == (3.0, 50)
    assert [row["chain"] for row in view["timeline"]["rows"]] == [
        "fkd, seed 0",
        "joint, seed 1",
    ]
    assert view["events"] == [{"time": 5.0, "event": "notice", "message": "rank 0 fell"}]
    curves = run.curves(0)
    (loss,) = curves["training"][0]["lines"]
    assert (loss["method"], loss["points"]) == ("fkd", [(0.5, 9.5), (2.0, 4.0)])
    top1 = next(chart for chart in curves["accuracy"] if chart["key"] == "top1")
    assert top1["lines"] == [{"method": "fkd", "points": [(0, 50.0), (1, 75.0)]}]
    assert run.curves(1)["training"][0]["lines"][0]["method"] == "joint"


def test_a_run_that_advances_is_told_anew(tmp_path):
    folder = write_run(tmp_path, "run", steps=1)
    run = looked(folder)
    assert run.detail(None, 0.0)["done"] == 0
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 10, loss=9.0))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "fkd/seed-0/step-0/train", "iteration": 20, "of"')
    run.study()
    drawn = run.detail(None, 0.0)["drawn"]
    assert run.detail(None, 0.0)["loss"] == 9.0
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(': 100, "loss": 8.0}\n')
    run.study()
    assert run.detail(None, 0.0)["loss"] == 8.0
    assert run.detail(None, 0.0)["drawn"] != drawn
    assert run.curves(0)["training"][0]["lines"][0]["points"] == [(0.1, 9.0), (0.2, 8.0)]
    evaluate(folder, "fkd", 0, 0, top1=0.5)
    run.study()
    assert run.detail(None, 0.0)["state"] == "finished"


def test_a_compared_run_is_finished_after_its_comparisons(tmp_path):
    folder = write_run(tmp_path, "run", steps=2)
    text = (folder / "run.yaml").read_text().replace("compatibility: null", "compatibility: {}")
    (folder / "run.yaml").write_text(text)
    evaluate(folder, "fkd", 0, 0, top1=0.5)
    evaluate(folder, "fkd", 0, 1, top1=0.5)
    assert looked(folder).overview(None, 0.0)["state"] == "stopped"
    output = "chains/fkd/seed-0/steps/1/compatibility.json"
    add(folder, "ledger.jsonl", phase("fkd/seed-0/step-1/compatibility", 1.0, 2.0, output=output))
    assert looked(folder).overview(None, 0.0)["state"] == "finished"


def attempt(folder, number, phases, left):
    event = {"time": 1.0, "event": "attempt", "attempt": number, "host": "a", "pid": 7}
    add(folder, "events.jsonl", {**event, "phases": phases, "left": left})


def calibrated(folder, name, attempt, **given):
    """A finished phase of a kind that nobody knows."""
    facts = {"kind": "calibrate", "where": "driver", "attempt": attempt, **given}
    add(folder, "ledger.jsonl", phase(f"fkd/seed-0/{name}", 1.0, 2.0, **facts))


def test_progress_is_of_phases_where_an_attempt_has_counted_them(tmp_path):
    """Whatever their kinds: also of steps that evaluate nothing, and have more after it."""
    folder = write_run(tmp_path, "run", steps=1)
    attempt(folder, 1, phases=4, left=4)
    evaluate(folder, "fkd", 0, 0, top1=0.5)  # lines that name no attempt are of before
    run = looked(folder)
    calibrated(folder, "step-0/calibrate", attempt=1)
    run.look()
    view = run.detail(None, 0.0)
    assert view["events"] == [
        {"time": 1.0, "event": "attempt", "message": "1 on a: 4 of 4 phases to do"}
    ]
    assert (view["phases_done"], view["phases"], view["state"]) == (1, 4, "stopped")
    assert (view["done"], view["of"], view["share"]) == (1, 1, 0.25)
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/distil", 50))
    run.look()
    assert run.overview(None, 0.0)["share"] == pytest.approx((1 + 0.5) / 4)
    calibrated(folder, "step-0/calibrate", attempt=1)  # the same once more
    attempt(folder, 2, phases=5, left=2)  # another kind has come, and two phases are due
    run.look()
    assert (run.phases(), run.complete()) == ((3, 5), False)
    calibrated(folder, "step-0/calibrate", attempt=2)
    calibrated(folder, "step-0/distil", attempt=2)
    run.look()
    assert (run.phases(), run.complete()) == ((5, 5), True)


def test_the_loss_of_the_phase_before_is_not_that_of_the_one_at_work(tmp_path):
    folder = write_run(tmp_path, "run", steps=2)
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 100, loss=9.0))
    run = looked(folder)
    for name, loss in (("step-0/train", 9.0), ("step-1/train", None)):
        view = run.overview(Answer(0.0, {}, f"fkd/seed-0/{name}"), 0.0)
        assert (view["loss"], view["iteration"] is None) == (loss, loss is None)


def test_the_list_has_the_newest_accuracy_and_the_time_left(tmp_path):
    folder = write_run(tmp_path, "run", steps=2)
    evaluate(folder, "fkd", 0, 0, top1=0.25)
    run = looked(folder)
    assert run.overview(None, 0.0)["accuracy"]["value"] == 0.25
    evaluate(folder, "fkd", 0, 1, top1=0.75)
    run.look()
    newest = run.overview(None, 0.0)["accuracy"]
    assert (newest["value"], newest["method"], newest["step"]) == (0.75, "fkd", 1)
    counted = Counted(1.0, phases=10, left=8, begun=100.0)  # two were done before this attempt
    assert seconds_left(counted, 100.0, 0.4, 160.0) == pytest.approx(180.0)
    assert seconds_left(counted, 100.0, 0.2, 160.0) is None, "nothing is known of its pace"
    assert seconds_left(None, None, 0.4, 160.0) is None


def test_an_attempt_by_a_version_of_before_counts_nothing(tmp_path):
    folder = write_run(tmp_path, "run", steps=1)
    attempt(folder, 1, phases=9, left=9)
    add(folder, "events.jsonl", {"time": 2.0, "event": "attempt", "attempt": 2, "host": "a"})
    evaluate(folder, "fkd", 0, 0, top1=0.5)
    view = looked(folder).overview(None, 0.0)
    assert (view["phases"], view["share"], view["state"]) == (None, 1.0, "finished")


def test_another_training_s_evaluation_is_not_its_step_s(tmp_path):
    folder = write_run(tmp_path, "run", steps=1)
    calibrated(folder, "step-0/calibrate", 1, output="chains/fkd/seed-0/steps/1/evaluation.json")
    inner = "chains/fkd/seed-0/steps/0/phases/adapter/evaluation.json"
    calibrated(folder, "step-0/adapter", 1, output=inner)
    assert looked(folder).done() == (0, 1)


def test_kinds_are_told_in_the_order_of_their_first_phases(tmp_path):
    """What a phase's label stands for, the ledger says, and else the label itself does."""
    folder = write_run(tmp_path, "run", steps=3)
    evaluate(folder, "fkd", 0, 0, top1=0.5)
    calibrated(folder, "step-0/first", 1)
    calibrated(folder, "step-1/second", 1)
    calibrated(folder, "step-1/third", 1, kind="<b>")
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-2/second", 50))
    view = looked(folder).detail(None, 0.0)
    assert view["kinds"] == ["train", "evaluate", "calibrate", "third"]
    (row,) = view["timeline"]["rows"]
    assert [(span["label"], span["kind"]) for span in row["spans"][2:]] == [
        *[("first", "calibrate"), ("second", "calibrate"), ("third", "third")],
        ("second", "calibrate"),
    ]


def test_a_run_that_continues_another_has_one_step_more(tmp_path):
    folder = write_run(tmp_path, "run", steps=1)
    text = (folder / "run.yaml").read_text() + "continues: runs/november\n"
    (folder / "run.yaml").write_text(text)
    evaluate(folder, "fkd", 0, 0, top1=0.5)
    assert looked(folder).overview(None, 0.0)["state"] == "stopped"
    evaluate(folder, "fkd", 0, 1, top1=0.5)
    assert looked(folder).overview(None, 0.0)["state"] == "finished"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1",
        "just words",
        "methods: {a: 1}",
        "a: &a [*a]",
        "\x00",
        "[" * 30_000 + "]" * 30_000,
        "[" * 70_000,
        "{methods: [a], seeds: [0], benchmark: {steps: 1000000000}, evaluation: {}, dataset: d}",
        "{methods: [a], seeds: 3, benchmark: {steps: 1}, evaluation: {}, dataset: d}",
        "{methods: [a], seeds: [0], benchmark: {steps: many}, evaluation: {}, dataset: d}",
        "!!python/object/apply:os.system ['touch hacked']",
    ],
)
def test_a_damaged_configuration_is_shown_as_damaged(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path, "run")
    (folder / "run.yaml").write_text(text)
    view = looked(folder).detail(None, 0.0)
    assert view["state"] == "damaged"
    assert "run.yaml" in view["trouble"][0]
    assert "\n" not in view["trouble"][0]
    assert not (tmp_path / "hacked").exists()


WILD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        [10**400, "attempt", "fkd/seed-0/step-0/train", "a/seed-9/step-0/evaluate", 1e308]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def lines_of(*keys):
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(keys, WILD))
    return st.lists(known | WILD, max_size=4).map(
        lambda found: "".join(json.dumps(one) + "\n" for one in found)
    )


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    metrics=lines_of("time", "phase", "iteration", "of", "loss", "images_per_second", "skipped"),
    ledger=lines_of("phase", "started", "finished", "kind", "output", "attempt"),
    events=lines_of("time", "event", "message", "rank", "phase", "attempt", "phases", "left"),
    evaluation=st.dictionaries(st.sampled_from(["top1", "map", "tests", "seen_top1"]), WILD),
    target=WILD | st.lists(st.fixed_dictionaries({"targets": WILD, "labels": WILD}), max_size=2),
)
def test_whatever_the_files_hold_the_page_can_be_made(
    tmp_path_factory, metrics, ledger, events, evaluation, target
):
    folder = write_run(tmp_path_factory.mktemp("runs"), "run")
    (folder / "metrics.jsonl").write_text(metrics)
    (folder / "ledger.jsonl").write_text(ledger)
    (folder / "events.jsonl").write_text(events)
    evaluate(folder, "fkd", 0, 0)
    where = folder / "chains" / "fkd" / "seed-0" / "steps" / "0" / "evaluation.json"
    where.write_text(json.dumps(evaluation))
    (folder / "targets").mkdir()
    (folder / "targets" / "driver.json").write_text(json.dumps(target))
    run = looked(folder)
    parts = [run.detail(Answer(0.0, error="gone"), 1e9), run.curves(0)]
    json.dumps(parts, allow_nan=False)


TARGET = Target("127.0.0.1:9", "driver", "")
FRESH = {"perennial_progress_timestamp_seconds": 1000.0}
RANKS = {"perennial_ranks_heard": 1.0, "perennial_ranks_expected": 2.0}


@pytest.mark.parametrize(
    ("state", "words", "given"),
    [
        ("damaged", "is no YAML", {"damage": "run.yaml is no YAML"}),
        ("finished", "", {"complete": True, "target": None}),
        ("stopped", "", {"target": None}),
        ("stopped", "not finite", {"target": None, "broken": True}),
        ("unasked", "", {"driver": None}),
        ("lost", "goes on from the last checkpoint", {"driver": Answer(0.0, error="refused")}),
        ("lost", "refused", {"driver": Answer(0.0, error="refused"), "complete": True}),
        ("running", "", {"now": 1900.0}),
        ("stalled", "nothing has been done for 15 min", {"now": 1901.0}),
        ("running", "", {"driver": Answer(0.0, FRESH | RANKS), "now": 1120.0}),
        ("running", "1 of 2 ranks", {"driver": Answer(0.0, FRESH | RANKS), "now": 1121.0}),
    ],
)
def test_a_state_is_judged(state, words, given):
    facts = {"damage": "", "complete": False, "broken": False, "target": TARGET}
    found, trouble = judge(**facts | {"driver": Answer(0.0, FRESH), "now": 1000.0} | given)
    assert found == state
    assert (words in "; ".join(trouble)) if words else not trouble


def test_the_open_phase_ends_where_a_lost_run_was_last_heard_of(tmp_path):
    folder = write_run(tmp_path, "run", steps=1)
    add(folder, "ledger.jsonl", phase("fkd/seed-0/step-0/neighbours", 1000.0, 1100.0))
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 10, time=1140.0))
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 20, time=1150.0))
    (folder / "targets").mkdir()
    listed = [{"targets": ["127.0.0.1:9"], "labels": {"job": "driver"}}]
    (folder / "targets" / "driver.json").write_text(json.dumps(listed))
    run = looked(folder)
    lost = run.detail(Answer(0.0, error="refused"), 9000.0)["timeline"]
    broken = lost["rows"][0]["spans"][-1]
    assert (broken["start"], broken["end"], lost["end"]) == (1140.0, 1150.0, 1150.0)
    driver = Answer(0.0, {"perennial_run_start_timestamp_seconds": 1090.0})
    well = run.detail(driver, 1200.0)["timeline"]["rows"][0]["spans"][-1]
    assert (well["start"], well["end"], well["state"]) == (1100.0, 1200.0, "running")


def text_of(metrics):
    return generate_latest(metrics.registry).decode()


def test_a_driver_s_own_endpoint_is_understood(tmp_path):
    driver = RunMetrics(write_run(tmp_path, "run"), 12, 3)
    driver.begin('a "quoted"\\method/seed-1/step-2/train')
    driver.ranks(4, 3)
    found = parse(text_of(driver), 1.0)
    assert found.phase == 'a "quoted"\\method/seed-1/step-2/train'
    assert found.values["perennial_ranks_heard"] == 3
    assert found.values["perennial_phases_done"] == 3


def test_a_rank_s_rates_are_those_between_two_looks():
    rank = Metrics()

    def works(iterations, seconds, waited):
        for _ in range(iterations):
            rank.iteration_seconds.observe(seconds)
        rank.data_wait.inc(waited)
        rank.count_doing("reading input", waited)
        rank.count_doing("optimiser", iterations * seconds - waited)
        return parse(text_of(rank), time.monotonic())

    first = works(10, 1.0, 9.0)
    assert rates([first])["iteration_seconds"] == pytest.approx(1.0)
    second = works(10, 0.5, 1.0)
    found = rates([first, second])
    assert found["iteration_seconds"] == pytest.approx(0.5)
    assert found["data_wait"] == pytest.approx(0.2)
    assert found["own_work"] == pytest.approx(0.2)
    assert rates([second, first])["iteration_seconds"] == pytest.approx(1.0)  # a process anew
    assert rates([Answer(0.0)]) == {"iteration_seconds": None, "data_wait": None, "own_work": None}


@pytest.mark.parametrize("text", ["<html>", "perennial_loss nan\nperennial_x{", "perennial_x 1e"])
def test_what_is_no_endpoint_is_refused_or_empty(text):
    with contextlib.suppress(ValueError):
        assert not parse(text, 0.0).values


def test_targets_are_addresses_and_nothing_else(tmp_path):
    good = ["127.0.0.1:80", "node-1.cluster:9100", "[::1]:9"]
    bad = ["127.0.0.1", "a:1/../x", "user@host:1", "http://a:1", "a b:1", "a:1#", "a:1\n", 7]
    file = tmp_path / "trainer-0.json"
    file.write_text(json.dumps([{"targets": [t], "labels": {"rank": "0"}} for t in good]))
    assert [t.address for t in read_targets(tmp_path, [file])] == good
    for address in bad:
        file.write_text(json.dumps([{"targets": [address]}]))
        assert read_targets(tmp_path, [file]) == []


@pytest.mark.parametrize(
    ("address", "allowed", "may"),
    [
        ("127.0.0.1:1", (), True),
        ("127.9.9.9:1", (), True),
        ("[::1]:1", (), True),
        ("localhost:1", (), True),
        (f"{socket.gethostname()}:1", (), True),
        ("10.0.0.1:1", (), False),
        ("169.254.169.254:80", (), False),
        ("2130706433:80", (), False),
        ("localhost.example:1", (), False),
        ("10.0.0.1:1", ("10.0.*",), True),
        ("10.1.0.1:1", ("10.0.*",), False),
    ],
)
def test_only_this_machine_and_hosts_that_were_named_are_asked(address, allowed, may):
    assert may_ask(address, allowed) is may


def test_alerts_that_fire_come_first():
    def alert(name, state, severity):
        labels = {"alertname": name, "severity": severity, "run": "r", "rank": "3"}
        return {"labels": labels, "annotations": {"summary": "s"}, "state": state, "activeAt": "t"}

    given = [alert("b", "pending", "critical"), alert("c", "firing", "warning")]
    given.append(alert("d", "firing", "critical"))
    found = read_alerts({"data": {"alerts": given}})
    assert [one["name"] for one in found] == ["d", "c", "b"]
    assert (found[0]["run"], found[0]["labels"]) == ("r", {"rank": "3"})
    for other in (None, [], {"data": 3}, {"data": {"alerts": [{}]}}):
        with pytest.raises(ValueError, match="no answer of Prometheus"):
            read_alerts(other)


def test_hosts_and_tokens():
    assert all(
        map(host_is_local, ["localhost", "localhost:80", "127.0.0.1:9", "[::1]:9", "LOCALHOST"])
    )
    strange = [
        None,
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "evil@evil.example",
        "[::1",
        "10.0.0.1",
    ]
    assert not any(map(host_is_local, strange))
    assert [is_local(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "host")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert matches("a" * 16, "a" * 16)
    assert not any(matches(given, "a" * 16) for given in (None, "", "a", "a" * 17, "é\udcff"))
    assert bearer("Bearer x") == "x"
    assert bearer("Basic x") is bearer(None) is None


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    folder = write_run(tmp_path, "run")
    add(folder, "metrics.jsonl", record("fkd/seed-0/step-0/train", 10, loss=math.nan))
    run = looked(folder)
    view = run.detail(None, 0.0)
    assert view["loss"] == "nan"
    assert view["trouble"] == ["the newest loss is not finite"]
    assert run.curves(0)["training"][0]["lines"] == [{"method": "fkd", "points": [], "lost": [0.1]}]
