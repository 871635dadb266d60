"""The driver's metrics: how far the run is, what its models reached."""

import json
import threading
import urllib.request
from contextlib import suppress

import pytest

from monitoring.run_metrics import RunMetrics, monitored
from tests.monitoring.prometheus import free_port, wait_for
from tests.monitoring.test_compatibility import compared

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
        file.write_text(json.dumps({"holds": verdict, "against": [compared(0, 0)]}))
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


PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}


def ask(port, headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    return urllib.request.urlopen(request).read().decode()


@pytest.mark.parametrize(("before", "waits"), [({}, False), (PROMETHEUS, True)])
def test_a_driver_that_is_scraped_stays_for_how_the_run_ended(tmp_path, before, waits):
    """Not for a browser, and not where nobody asked."""
    metrics, asked, ended = RunMetrics(tmp_path, 1, 0), threading.Event(), threading.Event()
    port = free_port()

    def run():
        with monitored(metrics, port, "127.0.0.1"):
            asked.wait(60)
            metrics.end()
        ended.set()

    driver = threading.Thread(target=run)
    driver.start()
    wait_for((tmp_path / "targets" / "driver.json").exists, "the driver serves nothing")
    ask(port, before)
    asked.set()
    if waits:
        wait_for(lambda: "perennial_phases_done 1.0" in ask(port, {}), "the end is not served")
        assert not ended.is_set(), "it left before it was scraped"

        def scraped() -> bool:
            with suppress(OSError):  # it is gone
                assert "perennial_phases_done 1.0" in ask(port, PROMETHEUS)
            return ended.wait(0.1)

        # the figures are there a moment before it waits: a scrape in between is not the last one
        wait_for(scraped, "it stays though it was scraped")
    assert ended.wait(30)
    driver.join()


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
