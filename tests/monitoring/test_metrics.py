"""Each process serves its metrics and says where."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.exporter import serving
from monitoring.metrics import SKIP_REASONS, Metrics
from monitoring.run_metrics import RunMetrics
from trainer.activity import Activity
from trainer.guard import Fault


def test_the_endpoint_serves_what_was_counted_until_it_ends(tmp_path):
    metrics = Metrics()
    metrics.iterations.inc(3)
    file = tmp_path / "night" / "targets" / "trainer-0.json"
    with serving(metrics.registry, file, {"rank": "0"}) as port:
        (target,) = json.loads(file.read_text())
        assert target == {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"run": "night", "rank": "0"},
        }
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert found["perennial_iterations_total"] == 3
    assert found["process_resident_memory_bytes"] > 2**20
    assert not file.exists()
    with pytest.raises(OSError):  # refused, or reset by who has got the port since
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_at_an_ipv6_address_it_is_listed_as_prometheus_reads_it(tmp_path):
    file = tmp_path / "night" / "targets" / "trainer-0.json"
    with serving(Metrics().registry, file, {}, host="::1") as port:
        (target,) = json.loads(file.read_text())
        assert target["targets"] == [f"[::1]:{port}"]
        urllib.request.urlopen(f"http://{target['targets'][0]}/metrics").close()


def test_a_process_that_fails_stays_listed_so_that_it_is_missed(tmp_path):
    file = tmp_path / "targets" / "trainer-0.json"
    with pytest.raises(ZeroDivisionError), serving(Metrics().registry, file, {}):
        _ = 1 / 0
    assert file.exists()


def test_what_a_rank_does_is_counted_when_it_turns_to_something_else():
    metrics = Metrics()
    activity = Activity(metrics.count_doing)
    for what in ("reading input", "forward", "reading input", "forward"):
        activity.turn(what)
    name = "perennial_doing_seconds_total"
    counted = {
        sample.labels["doing"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
    assert set(counted) == {"starting", "reading input", "forward"}
    assert all(seconds > 0 for seconds in counted.values())


def test_every_reason_to_skip_an_update_is_served_from_the_start():
    assert set(SKIP_REASONS) == set(get_args(Fault)) - {"weights"}
    value = Metrics().registry.get_sample_value
    for reason in SKIP_REASONS:
        assert value("perennial_skipped_updates_total", {"reason": reason}) == 0


def test_two_processes_worth_of_metrics_do_not_meet():
    a, b = Metrics(), Metrics()
    a.images.inc(5)
    assert b.registry.get_sample_value("perennial_images_total") == 0


@pytest.mark.parametrize(
    "family",
    [*Metrics().registry.collect(), *RunMetrics(Path("/"), 1, 0).registry.collect()],
    ids=lambda family: family.name,
)
def test_metrics_are_named_by_the_rules(family):
    assert family.name.startswith("perennial_")
    assert family.documentation.endswith(".")
    assert family.type in ("counter", "gauge", "histogram")
    if family.type == "counter" and family.samples:
        assert any(sample.name.endswith("_total") for sample in family.samples)


def test_the_labels_of_a_rank_are_bounded():
    labels = {
        name: {sample.labels[name] for sample in family.samples if name in sample.labels}
        for family in Metrics().registry.collect()
        for name in {name for sample in family.samples for name in sample.labels} - {"le"}
    }
    assert labels == {"reason": set(SKIP_REASONS)}, "and doing, which Activity.turn's callers bound"
