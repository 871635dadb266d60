"""Tables and charts of compatibility: complete, well formed, from the files alone."""

import io
import json
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from monitoring.compatibility import comparison_tables, comparisons, summary, summary_tables
from monitoring.compatibility_charts import (
    backfill_charts,
    flip_rows,
    gain_charts,
    matrices,
    whiskers,
)
from monitoring.heat_maps import Axes, heat_map
from monitoring.report import draw
from tests.monitoring.test_report import HOSTILE, write_run


def compared(step, against, seed=0, holds=True, gain=0.03):
    point = {"point": "top1", "old_old": 0.5 + 0.01 * against, "new_old": 0.53 + 0.01 * seed}
    point |= {"old_new": 0.4, "new_new": 0.7, "paragon": 0.8, "lower": 0.01, "holds": holds}
    point["gain"] = {"value": gain + 0.01 * seed, "low": gain - 0.02, "high": gain + 0.02}
    point["update_gain"] = {"value": 0.1, "low": 0.05, "high": 0.2} if holds else None
    worst = [{"identity": HOSTILE, "trials": 4, "lost": 3, "won": 1}]
    flips = {"trials": 90, "right_before": 50, "right_after": 53, "negative": 7, "positive": 10}
    flips |= {"identities": 30, "worse": 4, "better": 6, "worst": worst}
    curve = {"point": "top1", "share": [0.0, 0.5, 1.0], "isolated": [0.53, 0.62, 0.7]}
    curve["random"] = {
        "mean": [0.53, 0.6, 0.7],
        "least": [0.53, 0.58, 0.7],
        "most": [0.53, 0.61, 0.7],
    }
    facts = {"confidence": 0.95, "resamples": 1000, "identities": 30, "flips": flips}
    facts |= {"queries": 90, "queries_without_match": 3, "gallery": 4000, "pairs": 0}
    return {"step": against, "points": [point], "holds": holds, "backfill": [curve], **facts}


def write_compatibility(folder, steps=3):
    write_run(folder, steps=steps)
    for file in folder.glob("chains/*/seed-*/steps/*/evaluation.json"):
        step, seed = int(file.parent.name), int(file.parts[-4].removeprefix("seed-"))
        held = "fkd" in file.parts
        against = [compared(step, s, seed, held, 0.03 if held else -0.6) for s in range(step)]
        if step:
            content = {"holds": held, "paragon": None, "against": against}
            (file.parent / "compatibility.json").write_text(json.dumps(content))


def text(parts, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_figures_are_means_over_seeds_against_the_step_before_and_the_first(tmp_path):
    write_compatibility(tmp_path, steps=4)
    rows = [row for row in summary([tmp_path]) if row["method"] == "fkd"]
    assert [(row["step"], row["against"]) for row in rows] == [
        (1, 0),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 2),
    ]
    assert rows[0]["gain"]["mean"] == pytest.approx(0.035)
    assert rows[0]["gain"]["std"] == pytest.approx(0.01 / 2**0.5)
    assert (rows[0]["holds"], rows[0]["seeds"]) == (2, 2)
    shown = text(summary_tables(rows))
    assert "top-1, new queries on an old gallery (%)" in shown
    assert "+3.5 ± 0.7" in shown and "2 of 2" in shown and "+10.0" in shown


def test_a_comparison_of_two_models_is_told_in_full():
    found = {"new": "a", "old": "b", **compared(1, 0)}
    shown = text(comparison_tables(found))
    for part in ("queries by a, gallery by b", "50.0", "+3.0 (1.0…5.0)", "yes", "95%", "1,000"):
        assert part in shown
    assert "90 queries (3 without a match) in a gallery of 4,000; 0 pairs" in shown
    assert "negative flips: 7 of 50 trials" in shown and "4 of 30 identities get worse" in shown
    assert "no" in text(comparison_tables({**found, **compared(1, 0, holds=False)}))


def test_a_narrow_table_still_says_which_point_and_whether_it_holds():
    """At 80 columns, with a paragon, they were left out."""
    found = {"new": "a", "old": "b", **compared(1, 0)}
    wide = {"value": 0.579, "low": 0.234, "high": 1.349}
    points = [{**found["points"][0], "paragon": 0.6, "update_gain": wide, "point": "tpir@1e-1"}]
    shown = text(comparison_tables({**found, "points": points}), width=80)
    assert "tpir@1e-1" in shown and "holds" in shown and "yes" in shown


def test_a_matrix_holds_every_model_with_every_other(tmp_path):
    write_compatibility(tmp_path)
    ((name, chart),) = [m for m in matrices(comparisons(tmp_path)) if m[0].startswith("fkd")]
    assert name == "fkd: top-1, %"
    values = [e.text for e in ET.fromstring(chart).iter() if e.get("class") == "value"]
    assert values == ["50.0", "40.0", "40.0", "53.0", "51.0", "40.0", "53.0", "53.0", "70.0"]
    assert chart.count('class="cell holds"') == 3 and "fails" not in chart


def test_cells_are_framed_by_their_verdicts():
    cells = {(0, 0): 0.5, (1, 0): 0.6, (0, 1): 0.1, (1, 1): 0.7}
    drawn = ET.fromstring(heat_map(cells, Axes("query", "gallery"), {(1, 0): False}))
    frames = [e.get("class") for e in drawn.iter() if (e.get("class") or "").startswith("cell")]
    assert frames == ["cell ", "cell ", "cell fails", "cell "]


def test_losses_far_beyond_the_gains_are_written_not_drawn(tmp_path):
    write_compatibility(tmp_path)
    ((name, chart),) = gain_charts(comparisons(tmp_path), {"fkd": 0, "finetune": 1})
    assert name == "Gain on the step before, top-1, points"
    assert chart.count("<circle") == 2 and chart.count("◂ -60.0") == 2
    point = compared(1, 0)["points"][0]
    (mark,) = [
        e for e in ET.fromstring(whiskers([("a", 1, point)], {"a": 0})).iter() if e.get("cx")
    ]
    assert float(mark.get("cx")) > 150


def test_backfill_curves_and_flips_are_of_the_newest_model(tmp_path):
    write_compatibility(tmp_path)
    found = comparisons(tmp_path)
    titles = [name for name, _ in backfill_charts(found)]
    assert titles == ["finetune, 2 on 1: top-1, %", "fkd, 2 on 1: top-1, %"]
    assert [(row["steps"], row["negative"]) for row in flip_rows(found)] == [("2 on 1", 7)] * 2


def test_the_report_has_a_page_on_compatibility_only_where_it_was_measured(tmp_path):
    write_compatibility(tmp_path)
    page = draw(tmp_path).read_text()
    for part in ("<h2>Compatibility</h2>", "Partial backfill", "Negative flips", "+3.5", "2 on 1"):
        assert part in page
    assert "<script" not in page and "(3 of 4)" in page
    for file in tmp_path.glob("chains/*/seed-*/steps/*/compatibility.json"):
        file.unlink()
    assert "<h2>Compatibility</h2>" not in draw(tmp_path).read_text()
