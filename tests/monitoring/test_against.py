"""Accuracy against a setting: which methods make a curve, and what is drawn."""

import xml.etree.ElementTree as ET

import pytest

from monitoring.against import setting_charts, sweeps
from monitoring.report import draw
from tests.monitoring.test_report import HOSTILE

HOST = {"kind": "lwf", "weight": 1.0, "expert": None}
EXPERT = {"similar": 1, "temperature": 2.0}


def plugged(similar, **values):
    return {**HOST, **values, "expert": {**EXPERT, "similar": similar}}


METHODS = {
    "lwf": HOST,
    **{f"lwf-k{k}": plugged(k) for k in (4, 0, 2)},
    "lwf-cold": {**HOST, "expert": {**EXPERT, "temperature": 1.0}},
    "icarl-k0": plugged(0, kind="icarl"),
    "icarl-k1": plugged(1, kind="icarl"),
}


def row(method, step, mean, half=0.01):
    metric = {"title": "t", "mean": mean, "std": 0.0, "half_width": half}
    return {"method": method, "step": step, "seeds": 2, "class_accuracy": metric}


def test_methods_that_differ_in_one_number_are_a_sweep_and_their_host_is_found():
    (found,) = sweeps(METHODS)
    assert found.setting == "expert.similar" and found.name == found.alone == "lwf"
    assert found.methods == {0: "lwf-k0", 2: "lwf-k2", 4: "lwf-k4"}
    (other,) = sweeps({name: own for name, own in METHODS.items() if name != "lwf"})
    assert other.alone is None and other.name == "lwf-k"


def test_flags_texts_and_several_differences_make_no_sweep():
    assert not sweeps({f"a{n}": {"kind": "a", "on": bool(n), "x": n} for n in range(2)})
    assert not sweeps({f"a{n}": {"kind": "a", "how": str(n)} for n in range(5)})
    assert not sweeps({f"a{n}": {"kind": "a", "x": n, "y": n} for n in range(5)})
    assert not sweeps({"a": None, "b": [], "c": {f"k{n}": n for n in range(300)}})


def test_points_are_of_the_newest_step_that_all_have_and_the_host_is_a_level():
    rows = [row(m, s, 0.5 + 0.01 * s + 0.1 * n) for n, m in enumerate(METHODS) for s in range(2)]
    rows.append(row("lwf-k4", 2, 0.1))
    (own,) = setting_charts(rows, METHODS)
    assert own["name"] == "expert.similar" and own["alone"]
    ((title, chart),) = own["charts"]
    assert title == "accuracy among all classes so far"
    told = [one.text for one in ET.fromstring(chart).iter("title")]
    assert told == [
        "lwf, step 1",
        "lwf, step 1, 0: 71.00 ± 1.00",
        "lwf, step 1, 2: 81.00 ± 1.00",
        "lwf, step 1, 4: 61.00 ± 1.00",
        "lwf alone, step 1",
        "lwf alone, step 1, 0: 51.00",
        "lwf alone, step 1, 4: 51.00",
    ]
    assert "stroke-dasharray" in chart
    assert setting_charts([row("lwf-k0", 0, 0.5)], METHODS) == [], "the others are not finished"


@pytest.mark.parametrize(("values", "log"), [((1, 10, 100), True), ((0, 10, 100), False)])
def test_values_of_several_orders_are_on_a_logarithmic_axis(values, log):
    methods = {f"a{n}": {"kind": "a", "x": n} for n in values}
    (own,) = setting_charts([row(method, 0, 0.5) for method in methods], methods)
    places = {
        float(mark.attrib["transform"][10:].split(",")[0])
        for mark in ET.fromstring(own["charts"][0][1]).iter("path")
    }
    low, middle, high = sorted(places)
    assert ((middle - low) == pytest.approx(high - middle, abs=0.5)) == log


def test_a_strangers_names_are_escaped(tmp_path):
    methods = {f"a{n}": {"kind": "a", HOSTILE: n} for n in range(3)}
    (own,) = setting_charts([row(method, 0, 0.5) for method in methods], methods)
    assert "<script" not in own["charts"][0][1]
    (tmp_path / "run.yaml").write_text(
        "dataset: d\nseeds: [0]\nbenchmark: {steps: 1}\nevaluation: {}\n"
        "methods: {a: {x: 1}, b: {x: [2, {y: z}]}, c: text, d: {x: 3}}\n"
    )
    assert "<h2>Configuration" in draw(tmp_path).read_text()
