"""Class-incremental figures in the report and in `perennial compare`, and damaged ones."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
from pydantic import ValidationError

from monitoring.heat_maps import Axes, heat_map
from monitoring.incremental_charts import class_incremental
from monitoring.memory import memory, memory_table
from monitoring.report import draw
from monitoring.results import compare, tables
from monitoring.schemas import EVALUATION, EXEMPLARS
from tests.monitoring.test_report import HOSTILE, jpeg, write_run
from tests.monitoring.whole_run import classified, kept


def write_classes(folder, steps=3, seeds=(0, 1)):
    """Two methods, of which fkd keeps exemplars; a seed changes accuracies by a hundredth."""
    write_run(folder, seeds=seeds, steps=steps)
    for file in folder.glob("chains/*/*/steps/*/evaluation.json"):
        method, seed, step = file.parts[-5], int(file.parts[-4][5:]), int(file.parts[-2])
        figures = classified(step)
        figures["tasks"] = [share + 0.01 * seed for share in figures["tasks"]]
        file.write_text(json.dumps(figures))
        if method == "fkd" and step:
            file.with_name("generator").mkdir()
            card = {"version": 1, "kind": "generator", "of": "gaussian", "bytes": 7_000 + seed}
            (file.with_name("generator") / "card.json").write_text(json.dumps(card))
        if method == "fkd":
            told = {**kept(step, jpeg()), "images": 40 + seed}
            told["shown"][0]["identity"] = HOSTILE
            file.with_name("exemplars.json").write_text(json.dumps(told))
    return folder


def values_of(chart):
    """Each cell's step and percentage, from what is told when it is pointed at."""
    told = re.compile(r"(?:step )(\d+), .*step (\d+): ([\d.]+) %")
    found = {}
    for title in ET.fromstring(chart).iter("title"):
        row, column, value = told.search(title.text).groups()
        found[int(row), int(column)] = float(value)
    return found


def test_maps_are_means_over_seeds_of_each_methods_steps(tmp_path):
    rows = compare([write_classes(tmp_path)])
    shown = class_incremental(tmp_path, rows, ["fkd", "finetune"], 1 << 20, {})
    assert [name for name, _ in shown["tasks"]] == ["fkd", "finetune"]
    assert values_of(shown["tasks"][0][1]) == {
        (step, task): pytest.approx(100 * (0.5 - 0.1 * (step - task) + 0.005))
        for step in range(3)
        for task in range(step + 1)
    }
    name, chart = shown["confusion"][0]
    assert name == "fkd, step 2"
    assert values_of(chart) == dict.fromkeys([(j, k) for j in range(3) for k in range(3)], 33.33)


def test_the_page_has_maps_memory_and_escaped_exemplars(tmp_path):
    page = draw(write_classes(tmp_path)).read_text()
    assert page.count('<svg class="heat"') == 4
    assert "fkd, step 2: 40 images of 20 classes" in page, "of the first seed"
    assert page.count(f"data:image/jpeg;base64,{jpeg()}") > 2 and "<script" not in page
    for cell in ("4.20", "0.051", "0.031", "0.01"):  # MB
        assert f'">{cell}</td>' in page


def test_a_run_without_classes_has_none_of_it(tmp_path):
    write_run(tmp_path)
    assert "Class by class" not in draw(tmp_path).read_text()
    assert memory_table(compare([tmp_path])) is None


def test_compare_has_the_memory_of_the_first_seed(tmp_path):
    rows = compare([write_classes(tmp_path, seeds=(3, 10))])
    assert memory(tmp_path)["fkd", 2] == {
        "exemplar_images": 43,
        "exemplar_bytes": 51_000,
        "exemplar_pixel_bytes": 30_720,
        "generator_bytes": 7_003,
        "network_bytes": 4_200_000,
        "rows_bytes": 10_240,
    }
    assert "generator_bytes" not in memory(tmp_path)["fkd", 0]
    last = {row["method"]: row for row in rows if row["step"] == 2}
    assert last["fkd"]["memory"]["exemplar_images"] == 43
    assert last["finetune"]["memory"].keys() == {"network_bytes", "rows_bytes"}
    assert last["fkd"]["tasks"] == pytest.approx([0.3 + 0.065, 0.4 + 0.065, 0.5 + 0.065])
    assert last["fkd"]["confusion"] == [[pytest.approx(1 / 3)] * 3] * 3
    *_, drawn = tables(rows)
    assert drawn.row_count == 2 and str(drawn.title).startswith("kept after")


def test_importances_are_memory_wherever_a_step_left_them_whole(tmp_path):
    folder = write_classes(tmp_path, seeds=(3, 10))
    for seed in (3, 10):
        of = folder / f"chains/finetune/seed-{seed}/steps/1/importance"
        of.mkdir()
        (of / "importances.safetensors").write_bytes(b"0" * (100 + seed))
    (folder / "chains/finetune/seed-3/steps/2/importance").mkdir()
    linked = folder / "chains/fkd/seed-3/steps/1/importance"
    linked.mkdir()
    (linked / "importances.safetensors").symlink_to("/etc/passwd")
    kept = memory(folder)
    assert kept["finetune", 1]["importance_bytes"] == 103
    others = {key for key, own in kept.items() if "importance_bytes" in own}
    assert others == {("finetune", 1)}


def test_a_generators_card_that_says_no_bytes_is_damaged(tmp_path):
    folder, damage = write_classes(tmp_path, seeds=(3,)), {}
    for card in folder.glob("chains/fkd/seed-3/steps/*/generator/card.json"):
        card.write_text('{"bytes": "many"}')
    assert "generator_bytes" not in memory(folder, damage)["fkd", 2]
    assert any("generator" in name for name in damage)


def test_pictures_that_a_page_has_no_room_for_are_left_out_and_said(tmp_path):
    rows, damage = compare([write_classes(tmp_path)]), {}
    shown = class_incremental(tmp_path, rows, ["fkd", "finetune"], 10, damage)
    assert shown["sheets"] == [] and "from fkd on" in damage["exemplars.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": [[0.5, 0.5]]},
        {"confusion": [[0.5, 0.5], [1.0]]},
        {"confusion": [[1.5]]},
        {"confusion": [[float("nan")]]},
        {"confusion": []},
        {"confusion": [["1"]]},
        {"model_bytes": {"network": -1, "rows": 1}},
        {"model_bytes": {"network": 1}},
        {"first_drop": 3.0},
    ],
)
def test_damaged_figures_are_refused(change):
    EVALUATION.validate_python(classified(1))
    with pytest.raises(ValidationError):
        EVALUATION.validate_python({**classified(1), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"images": -1},
        {"bytes": "9"},
        {"shown": [{"identity": "a", "jpegs": ["PHN2Zz4="]}]},
        {"shown": [{"identity": "a", "jpegs": [jpeg()] * 101}]},
        {"shown": [{"jpegs": [jpeg()]}]},
    ],
)
def test_damaged_exemplars_are_refused(change):
    EXEMPLARS.validate_python(kept(1, jpeg()))
    with pytest.raises(ValidationError):
        EXEMPLARS.validate_python({**kept(1, jpeg()), **change})


@pytest.mark.parametrize(("steps", "written"), [(2, "50.0"), (11, "50"), (26, None)])
def test_large_maps_write_fewer_digits_and_then_none(steps, written):
    cells = {(t, k): 0.5 for t in range(steps) for k in range(t + 1)}
    drawn = ET.fromstring(heat_map(cells, Axes("model", "classes"), scale=(0, 1)))
    texts = [e.text for e in drawn.iter() if e.get("class") == "value"]
    assert texts == ([] if written is None else [written] * len(cells))
    assert len([e for e in drawn.iter() if "cell" in (e.get("class") or "")]) == len(cells)
