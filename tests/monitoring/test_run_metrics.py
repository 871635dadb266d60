"""The driver's metrics: how far the run is, what its models reached."""

import json

import pytest

from monitoring.run_metrics import RunMetrics, monitored

NAME = {"method": "fkd", "seed": "0"}


def reached(run, step, top1, method="fkd"):
    folder = run / "chains" / method / "seed-0" / "steps" / str(step)
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"top1": top1}))
    return folder


def test_accuracy_is_compared_with_the_step_before(tmp_path):
    reached(tmp_path, 9, 0.7)
    metrics = RunMetrics(tmp_path, phases=6, done=2)
    value = metrics.registry.get_sample_value
    labels = {**NAME, "measure": "top1"}
    assert value("perennial_accuracy_ratio", {**labels, "step": "9"}) == 0.7
    assert value("perennial_accuracy_change_ratio", labels) is None
    reached(tmp_path, 10, 0.6)
    metrics.end()
    assert value("perennial_accuracy_ratio", {**labels, "step": "10"}) == 0.6
    assert value("perennial_accuracy_change_ratio", labels) == pytest.approx(-0.1)
    assert value("perennial_phases_done") == 3


@pytest.mark.parametrize("holds", [True, False])
def test_the_newest_comparison_says_whether_a_chain_is_compatible(tmp_path, holds):
    for step, verdict in ((9, not holds), (10, holds)):
        file = reached(tmp_path, step, 0.5) / "compatibility.json"
        file.write_text(json.dumps({"holds": verdict}))
    value = RunMetrics(tmp_path, 1, 0).registry.get_sample_value
    assert value("perennial_compatible", NAME) == holds


def test_only_the_phase_at_work_is_named(tmp_path):
    metrics = RunMetrics(tmp_path, 2, 0)
    metrics.begin("fkd/seed-0/step-0/train")
    metrics.begin("fkd/seed-0/step-0/evaluate")
    (family,) = [f for f in metrics.registry.collect() if f.name == "perennial_phase"]
    (sample,) = family.samples
    assert sample.labels == {**NAME, "step": "0", "kind": "evaluate"}


def test_no_rank_is_expected_once_a_phase_is_over(tmp_path):
    metrics = RunMetrics(tmp_path, 2, 0)
    metrics.ranks(4, 3)
    value = metrics.registry.get_sample_value
    assert (value("perennial_ranks_expected"), value("perennial_ranks_heard")) == (4, 3)
    metrics.end()
    assert (value("perennial_ranks_expected"), value("perennial_ranks_heard")) == (0, 0)


@pytest.mark.parametrize(("error", "left"), [(None, 0), (KeyboardInterrupt, 0), (OSError, 1)])
def test_a_run_that_ended_badly_stays_listed(tmp_path, error, left):
    targets = tmp_path / "targets"
    targets.mkdir()
    (targets / "trainer-7.json").write_text("[]")  # of an attempt that was killed

    def attempt():
        with monitored(RunMetrics(tmp_path, 1, 0), None, "127.0.0.1"):
            assert [file.name for file in targets.iterdir()] == ["driver.json"]
            if error:
                raise error

    if error:
        with pytest.raises(error):
            attempt()
    else:
        attempt()
    assert len(list(targets.glob("*.json"))) == left
