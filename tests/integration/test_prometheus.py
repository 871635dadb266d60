"""A real Prometheus scrapes a real run: every panel has data, every rule is evaluated."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monitoring.panels import DASHBOARDS
from tests.monitoring.prometheus import (
    Prometheus,
    free_port,
    needs_prometheus,
    wait_for,
    without_for,
)

pytestmark = needs_prometheus
CONFIG = """
dataset: {dataset}
benchmark: {{steps: 2, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 60, batch: 12, milestones: [40], checkpoint_every: 20, log_every: 5}}
methods: {{fkd: {{neighbours: 5, relaxation: 0.01}}}}
evaluation: {{compatibility: {{at: [top1], resamples: 100}}}}
seeds: [0, 1, 2]
cluster: {{workers: 0, actors: 1, metrics_port: {port}}}
"""
SECONDS = 0.25
OF_OTHERS = "DCGM_"
"""Served by NVIDIA's exporter."""


def start(config: Path, out: Path) -> subprocess.Popen:
    line = [sys.executable, "-m", "launch.cli", "run", str(config), "--out", str(out)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def scraped(small_folder, tmp_path_factory):
    """A Prometheus that saw a run end with SIGTERM, be started again, and finish; and since when.

    On its way it holds the alert of the lost driver to what it promises.
    """
    folder = tmp_path_factory.mktemp("scraped")
    config, out = folder / "tiny.yaml", folder / "run"
    port = free_port()
    config.write_text(CONFIG.format(dataset=small_folder, port=port))
    (out / "targets").mkdir(parents=True)
    begun = time.time()
    # phases last about a second here, and Prometheus takes up to five to notice a new targets file
    labels = {"run": out.name, "job": "trainer", "rank": "0"}
    known = {"targets": [f"127.0.0.1:{port}"], "labels": labels}
    run = None
    try:
        with Prometheus(folder / "prometheus", [out], SECONDS, without_for, [known]) as prometheus:
            run = start(config, out)
            trained = 'count_over_time(perennial_loss{job="trainer"}[5m])'

            def seen() -> bool:
                assert run.poll() is None, run.stderr.read()
                return bool(prometheus.query(trained))

            wait_for(seen, "nothing was scraped")
            run.send_signal(signal.SIGTERM)
            assert run.wait(timeout=120) == 75, run.stderr.read()
            lost = "PerennialDriverLost"
            wait_for(lambda: prometheus.firing(lost), "a lost driver was not missed")
            run = start(config, out)
            back = "a driver that is back is still missed"
            wait_for(lambda: not prometheus.firing(lost), back)
            # actors live for as long as there is work: it waits until Prometheus has noticed them
            wait_for((out / "targets" / "actor-0.json").exists, "no actor was started")
            run.send_signal(signal.SIGSTOP)
            wait_for(lambda: prometheus.query('up{job="actor"} == 1'), "no actor was scraped")
            run.send_signal(signal.SIGCONT)
            assert run.wait(timeout=420) == 0, run.stderr.read()
            yield prometheus, begun, time.time()
    finally:
        if run is not None:
            run.send_signal(signal.SIGCONT)
            run.terminate()
            run.wait()


QUERIES = [
    pytest.param(query, id=f"{board.uid}: {panel.title}: {legend}")
    for board in DASHBOARDS
    for panel in board.panels
    for legend, query in panel.queries.items()
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_panel_has_data(scraped, query):
    prometheus, begun, ended = scraped
    query = query.replace("$__rate_interval", "10s").replace("$run", ".*")
    query = query.replace("$__range", "1h")
    found = prometheus.get("query_range", query=query, start=begun, end=ended, step="1s")
    assert found["result"] or OF_OTHERS in query


@pytest.mark.parametrize(
    "query", [note["expr"] for note in DASHBOARDS[0].json()["annotations"]["list"]]
)
def test_what_is_drawn_over_panels_can_be_asked(scraped, query):
    prometheus, begun, ended = scraped
    query = query.replace("$run", ".*").replace("[1m]", "[10s]")
    found = prometheus.get("query_range", query=query, start=begun, end=ended, step="1s")
    assert bool(found["result"]) == ("phase_start" in query)  # nothing else happened


def test_every_rule_is_evaluated_and_every_recording_rule_has_data(scraped):
    prometheus, begun, ended = scraped
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 23
    assert all(rule["health"] == "ok" for rule in rules), rules
    for rule in rules:
        if rule["type"] == "recording":
            span = {"start": begun, "end": ended, "step": "1s"}
            assert prometheus.get("query_range", query=rule["name"], **span)["result"], rule["name"]


def test_nothing_is_missed_after_a_good_end(scraped):
    prometheus, _, _ = scraped

    def left() -> bool:
        pools = [t["scrapePool"] for t in prometheus.get("targets")["activeTargets"]]
        return "perennial" in pools

    wait_for(lambda: not left(), "targets are left", 60)
    for alert in ("PerennialDriverLost", "PerennialRunStalled", "PerennialRankMissing"):
        wait_for(lambda alert=alert: not prometheus.firing(alert), alert, 60)
