"""Each process serves its metrics and says where."""

import json
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.exporter import serve_metrics
from monitoring.metrics import Metrics


def test_the_endpoint_serves_what_was_counted(tmp_path):
    metrics = Metrics()
    metrics.iterations.inc(3)
    file = tmp_path / "targets" / "trainer-0.json"
    port = serve_metrics(metrics.registry, file, {"rank": "0"})
    (target,) = json.loads(file.read_text())
    assert target == {"targets": [f"127.0.0.1:{port}"], "labels": {"rank": "0"}}
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert found["perennial_iterations_total"] == 3


def test_two_processes_worth_of_metrics_do_not_meet():
    a, b = Metrics(), Metrics()
    a.images.inc(5)
    assert b.registry.get_sample_value("perennial_images_total") == 0


@pytest.mark.parametrize("family", Metrics().registry.collect(), ids=lambda family: family.name)
def test_metrics_are_named_by_the_rules(family):
    assert family.name.startswith("perennial_")
    assert family.documentation.endswith(".")
    assert family.type in ("counter", "gauge", "histogram")
    labels = {name for sample in family.samples for name in sample.labels} - {"le"}
    assert not labels, "bounded: only skipped updates have a label, guard.Fault"
    if family.type == "counter" and family.samples:
        assert any(sample.name.endswith("_total") for sample in family.samples)
