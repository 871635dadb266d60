"""What methods gain over another, paired by seed: in values and tables."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from monitoring.additions import addition_charts
from monitoring.against import hosts
from monitoring.gains import gain_tables, gains, told_gains
from monitoring.records import evaluations
from monitoring.results import compare
from tests.commands import perennial
from untrusted.errors import InputError

SHARES = {"host": {0: 0.50, 1: 0.60, 2: 0.55}, "plug": {0: 0.52, 1: 0.63, 2: 0.56, 3: 0.9}}


@pytest.fixture
def run(tmp_path):
    """A run of two methods, of which one has a seed more."""
    for method, seeds in SHARES.items():
        for seed, share in seeds.items():
            folder = tmp_path / f"run/chains/{method}/seed-{seed}/steps/1"
            folder.mkdir(parents=True)
            figures = {"class_accuracy": share, "average_accuracy": share + 0.1}
            (folder / "evaluation.json").write_text(json.dumps(figures))
    return tmp_path / "run"


def test_a_gain_is_the_mean_over_the_seeds_that_both_have(run):
    found = gains([run], "host")
    assert list(found) == [("run", "plug", 1)]
    title, gain = found["run", "plug", 1]["class_accuracy"]
    assert title == "accuracy among all classes so far" and gain.seeds == 3
    these, those = (np.array([SHARES[m][seed] for seed in range(3)]) for m in ("plug", "host"))
    low, high = stats.ttest_rel(these, those).confidence_interval(0.95)
    assert gain.values()["low"] == pytest.approx(low)
    assert gain.values()["high"] == pytest.approx(high)
    assert gains([run], "plug")["run", "host", 1]["class_accuracy"][1].mean == -gain.mean


def test_tables_and_json_say_points_with_intervals(run):
    tables = gain_tables(gains([run], "host"), "host")
    assert str(tables[0].title) == "accuracy among all classes so far: minus host (points)"
    assert list(tables[0].columns[1].cells) == ["+2.0 [-0.5, +4.5]"]
    assert "paired (Student's t)" in str(tables[-1].caption)
    rows = {row["method"]: told_gains(gains([run], "host"), row) for row in compare([run])}
    assert rows["plug"]["class_accuracy"]["mean"] == pytest.approx(0.02) and rows["host"] == {}
    printed = json.loads(perennial("compare", run, "--json", "--against", "host").stdout)
    (plug,) = (row["minus"] for row in printed if row["method"] == "plug")
    assert plug == {"method": "host", **rows["plug"]}


def test_an_unknown_method_is_named_with_those_there_are(run):
    with pytest.raises(InputError, match="no run has a method 'x', only: host, plug"):
        gains([run], "x")


def test_the_report_draws_what_an_addition_gains_over_its_host(run):
    methods = {
        "host": {"kind": "lwf", "weight": 1.0, "expert": None},
        "plug": {"kind": "lwf", "weight": 1.0, "expert": {"similar": 1}},
        "other": {"kind": "lwf", "weight": 2.0, "expert": {"similar": 1}},
        "unfinished": {"kind": "lwf", "weight": 1.0, "expert": {"similar": 2}},
    }
    assert hosts(methods) == {"plug": "host", "unfinished": "host"}
    drawn = addition_charts(run, compare([run]), methods, {"host": 0, "plug": 1}, {})
    assert [name for name, _ in drawn["legend"]] == ["plug - host"]
    titles = [title for title, _ in drawn["charts"]]
    assert titles == ["accuracy among all classes so far", "average incremental accuracy"]
    for _, chart in drawn["charts"]:
        told = [one.text for one in ET.fromstring(chart).iter("title")]
        assert told == ["plug - host", "plug - host, 1: 2.00 ± 2.48"]
    methods.pop("host")
    assert addition_charts(run, compare([run]), methods, {}, {}) is None


def test_rows_are_in_the_order_of_seeds_and_steps_as_numbers(tmp_path):
    for seed, step in ((10, 0), (2, 10), (2, 2)):
        folder = tmp_path / f"run/chains/m/seed-{seed}/steps/{step}"
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text('{"class_accuracy": 0.5}')
    found = [(one["seed"], one["step"]) for one in evaluations(tmp_path / "run")]
    assert found == [(2, 2), (2, 10), (10, 0)]
    assert [row["step"] for row in compare([tmp_path / "run"])] == [0, 2, 10]
