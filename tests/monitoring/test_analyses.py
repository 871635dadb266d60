"""Analyses in the report and in tables: means over seeds, words escaped, damage left out."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from monitoring.analyses import similarities, similarity_by_method, similarity_tables
from monitoring.attention import attention_sheets, attentions
from monitoring.feature_plots import (
    feature_plots,
    features,
    features_over_steps,
    scatter,
    step_plots,
)
from monitoring.similarity_maps import layer_map, similarity_maps
from tests.monitoring.test_report import HOSTILE, data_of
from tests.monitoring.whole_run import ANALYSES


def layer(mean, floor=0.2):
    return {"mean": mean, "floor": floor, "directions": [2, 2]}


def chain(method, seed, cells):
    made = [
        {"task": t, "step": s, "images": 5, "layers": {n: layer(m) for n, m in layers.items()}}
        for (t, s), layers in cells.items()
    ]
    return {"method": method, "seed": seed, "of": "x", "cells": made}


CHAINS = [
    chain("b", 0, {(0, 1): {"block 1": 0.9, "logits": 0.5}, (0, 2): {"block 1": 0.8}}),
    chain("a", 0, {(0, 1): {"block 1": 0.2}, (0, 2): {"block 1": 0.1}, (1, 2): {"block 1": 0.4}}),
    chain("b", 1, {(0, 1): {"block 1": 0.7, "logits": 0.7}}),
]


def test_maps_are_means_over_seeds_in_the_reports_order_of_methods():
    found = similarity_by_method(CHAINS)
    assert found["b"][0, 1] == {"block 1": pytest.approx(0.8), "logits": pytest.approx(0.6)}
    assert found["b"][0, 2] == {"block 1": 0.8}
    assert [name for name, _ in similarity_maps(CHAINS, ["a", "c"])] == ["a", "b"]
    told = [
        title.text for title in ET.fromstring(similarity_maps(CHAINS, ["b"])[0][1]).iter("title")
    ]
    assert told == [
        "block 1, classes of step 0 after step 1: 80.0 %; unrelated features: 20 %",
        "logits, classes of step 0 after step 1: 60.0 %; unrelated features: 20 %",
        "block 1, classes of step 0 after step 2: 80.0 %; unrelated features: 20 %",
    ]
    heads, *rows = data_of(similarity_maps(CHAINS, ["b"])[0][1])
    assert heads == ["classes of step", "after step", "layer", "%", "unrelated features, %"]
    assert [row[:3] for row in rows] == [
        ["0", "1", "block 1"],
        ["0", "1", "logits"],
        ["0", "2", "block 1"],
    ]
    assert [float(row[3]) for row in rows] == pytest.approx([80, 60, 80])


def test_tables_are_of_each_methods_newest_step():
    rows = [[list(column.cells) for column in table.columns] for table in similarity_tables(CHAINS)]
    assert [list(map(str, column)) for column in rows[0]] == [
        ["b", "a"],
        ["2", "2"],
        ["80.0 (20)", "10.0 (20)"],
        ["–", "–"],
    ]
    assert rows[1][2] == ["80.0 (20)", "25.0 (20)"], "the mean over two steps' classes"


@pytest.mark.parametrize("steps", [2, 6, 7, 26])
def test_maps_of_many_steps_show_a_few_steps_classes_from_first_to_last(steps):
    cells = {(t, s): {"block 1": 0.5} for s in range(steps) for t in range(s)}
    chart = layer_map(cells, cells)
    shown = sorted({int(n) for n in re.findall(r">classes of step (\d+)<", chart)})
    assert len(shown) == min(5, steps - 1) and (shown[0], shown[-1]) == (0, steps - 2)
    assert chart.count("<rect") == sum(steps - 1 - task for task in shown)
    written = chart.count('class="value"')
    assert written == (chart.count("<rect") if steps < 8 else 0)
    box = ET.fromstring(chart).attrib["viewBox"].split()
    for rect in ET.fromstring(chart).iter("rect"):
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= float(box[3])


def test_points_keep_their_distances_and_lie_within_the_picture():
    groups = [
        {"label": "a", "origin": "test", "points": [[0.0, 0.0], [3.0, 4.0]]},
        {"label": "b", "origin": "test", "points": [[30.0, -7.0], [30.0, -2.0]]},
    ]
    drawn = ET.fromstring(scatter(groups, {"a": 0, "b": 1}))
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in drawn.iter("circle")]
    assert all(0 < x < 520 and 0 < y < 420 for x, y in places)
    lengths = [abs(complex(*a) - complex(*b)) for a, b in (places[:2], places[2:])]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.5), "one scale for both axes"
    assert places[0][1] > places[1][1], "up is up"
    assert scatter([{"label": "a", "origin": "test", "points": []}], {"a": 0}) == ""
    one = scatter([{"label": "a", "origin": "test", "points": [[5.0, 5.0]]}], {"a": 0})
    assert 'cx="260.0" cy="210.0"' in one


def test_a_line_leads_from_what_an_exemplar_began_as_to_the_exemplar():
    groups = [
        {"label": "a", "origin": "exemplar", "points": [[0.0, 0.0], [4.0, 4.0]]},
        {"label": "b", "origin": "exemplar", "points": [[9.0, 0.0]]},
        {"label": "a", "origin": "start", "points": [[2.0, 1.0], [4.0, 3.0]]},
    ]
    drawn = ET.fromstring(scatter(groups, {"a": 0, "b": 1}))
    rings = [(c.attrib["cx"], c.attrib["cy"]) for c in drawn.iter("circle")]
    squares = [(float(r.attrib["x"]) + 4, float(r.attrib["y"]) + 4) for r in drawn.iter("rect")]
    lines = [line.attrib for line in drawn.iter("line")]
    assert [(line["x1"], line["y1"]) for line in lines] == rings
    assert [(float(line["x2"]), float(line["y2"])) for line in lines] == squares[:2]
    groups[2]["points"].append([1.0, 1.0])
    assert scatter(groups, {"a": 0, "b": 1}).count("<line") == 2, "of a file that was damaged"


def test_classes_have_colours_and_origins_shapes(tmp_path):
    value = json.loads(json.dumps(ANALYSES["features/fkd/seed-0/step-1.json"]))
    value["groups"].append({"label": HOSTILE, "origin": "test", "points": [[2.0, 1.0]]})
    for step in (10, 2):
        file = tmp_path / f"analyses/features/fkd/seed-0/step-{step}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**value, "step": step}))
    (tmp_path / "analyses/features/fkd/seed-0/step-3.json").write_text('{"version": 7}')
    damage = {}
    found = features(tmp_path, damage)
    assert [one["step"] for one in found] == [2, 10]
    assert list(damage) == ["analyses/features/fkd/seed-0/step-3.json"]
    (first, _) = feature_plots(found)
    assert first["title"] == "fkd, seed 0, step 2"
    assert [words for words, _ in first["origins"]] == [
        "test images",
        "exemplars kept",
        "generated",
    ]
    assert [colour for _, colour in first["classes"]] == [0, 1]
    chart = first["chart"]
    kinds = [chart.count(f'class="{kind}"') for kind in ("image", "exemplar", "generated")]
    assert kinds == [3, 2, 2] and "--own:var(--c1)" in chart and "<script" not in chart
    ET.fromstring(chart)


def chains(tmp_path, *methods, steps=2):
    """Files of features over steps: two identities, in another order at each other step."""
    for method in methods:
        file = tmp_path / f"analyses/features/{method}/seed-0/over-steps.json"
        file.parent.mkdir(parents=True)
        groups = [
            {"label": label, "origin": "test", "points": [[float(n), 0.0], [0.5, 1.0]]}
            for n, label in enumerate(("=a", HOSTILE))
        ]
        told = [
            {"step": step, "model": "m", "groups": groups[:: 1 - 2 * (step % 2)]}
            for step in range(steps)
        ]
        value = {"version": 1, "method": method, "seed": 0, "steps": told[::-1]}
        file.write_text(json.dumps(value))
    return features_over_steps(tmp_path)


def test_an_identity_has_its_colour_at_every_step(tmp_path):
    found = step_plots(chains(tmp_path, "b", "a", "c", steps=2), ["c", "a"])
    assert [plot["title"] for plot in found] == ["c, seed 0", "a, seed 0", "b, seed 0"]
    for plot in found:
        colours = dict(plot["classes"])
        assert set(colours.values()) == {0, 1}
        page = ET.fromstring(plot["chart"])
        assert [b.text for b in page.iter("b")] == ["step 0", "step 1"]
        drawn = [
            (group[0].text, group.attrib["style"])
            for picture in page.iter("svg")
            for group in picture.iter("g")
        ]
        wanted = {(f"{n}, test images", f"--own:var(--c{c})") for n, c in colours.items()}
        assert len(drawn) == 4 and set(drawn) == wanted
        heads, *rows = data_of(plot["chart"])
        assert heads == ["step", "class", "origin", "x", "y"]
        assert rows[0] == ["0", "'=a", "test", "0.0", "0.0"] and len(rows) == 8


@pytest.mark.parametrize("steps", [1, 10, 11, 30])
def test_of_many_steps_some_are_drawn_from_first_to_last(tmp_path, steps):
    (plot,) = step_plots(chains(tmp_path, "a", steps=steps), ["a"])
    shown = [int(n) for n in re.findall(r"<b>step (\d+)</b>", plot["chart"])]
    assert len(set(shown)) == min(steps, 10) and (shown[0], shown[-1]) == (0, steps - 1)
    assert len(data_of(plot["chart"])) == 1 + 4 * steps, "and all of them are in the data"


def test_a_damaged_file_is_left_out_and_said(tmp_path):
    (tmp_path / "analyses").mkdir()
    file = tmp_path / "analyses/similarity.json"
    value = ANALYSES["similarity.json"]
    for damaged in (
        "{",
        json.dumps({**value, "version": 2}),
        json.dumps(value).replace("0.75", "7"),
    ):
        file.write_text(damaged)
        damage = {}
        assert similarities(tmp_path, damage) == [] and list(damage) == ["analyses/similarity.json"]
    file.write_text(json.dumps(value))
    assert similarities(tmp_path) == value["chains"]


def test_maps_of_attention_are_in_their_steps_columns(tmp_path):
    value = json.loads(json.dumps(ANALYSES["attention/fkd/seed-0.json"]))
    for seed in (1, 0):
        file = tmp_path / f"analyses/attention/fkd/seed-{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**value, "seed": seed}))
    picture = {**value["images"][0], "jpeg": "PHNjcmlwdD4="}
    file = tmp_path / "analyses/attention/fkd/seed-2.json"
    file.write_text(json.dumps({**value, "images": [picture]}))
    damage = {}
    found = attentions(tmp_path, damage)
    assert [one["seed"] for one in found] == [0, 1]
    assert list(damage) == ["analyses/attention/fkd/seed-2.json"], "it holds no JPEG"
    (sheet, _) = attention_sheets(found, 1 << 20, damage)
    assert sheet["title"] == "fkd, seed 0, true class"
    (row,) = sheet["rows"]
    assert row["cells"] == [None, value["images"][0]["maps"][0]], "step 0 did not know the class"
    each = 2 * len(value["images"][0]["jpeg"])
    assert len(attention_sheets(found, each, damage)) == 1, "there is room for one"
    assert "from fkd on are left out" in damage["attention"]
