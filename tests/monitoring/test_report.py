"""The report and its parts: complete, self-contained, and safe against hostile names."""

import json
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitoring.charts import Line, Span, line_chart, ticks, timeline
from monitoring.report import draw
from monitoring.results import METRICS, compare, ordered_methods

HOSTILE = '<script>alert("x")</script>'


def write_run(folder: Path, methods=("finetune", "fkd"), seeds=(0, 1), steps=2) -> None:
    for m, method in enumerate(methods):
        for seed in seeds:
            for step in range(steps):
                target = folder / "chains" / method / f"seed-{seed}" / "steps" / str(step)
                target.mkdir(parents=True)
                value = 0.5 + 0.1 * m + 0.01 * seed + 0.05 * step
                (target / "evaluation.json").write_text(json.dumps(dict.fromkeys(METRICS, value)))
                picture = {"identity": HOSTILE, "jpeg": "AAAA"}
                (target / "examples.json").write_text(
                    json.dumps([{"query": picture, "found": [picture]}])
                )
    config = {
        "seeds": list(seeds),
        "dataset": HOSTILE,
        "benchmark": {"steps": steps, "evaluate": "test"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    record = {"phase": "fkd/seed-0/step-1/train", "iteration": 10, "of": 20, "classify": 1.5}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n" + '{"torn')
    done = {"kind": "train", "method": "fkd", "seed": 0, "started": 0.0, "finished": 60.0}
    (folder / "ledger.jsonl").write_text(json.dumps({**done, "phase": HOSTILE}) + "\n")


def test_means_and_deviations_are_over_seeds(tmp_path):
    write_run(tmp_path)
    rows = compare([tmp_path])
    (row,) = [r for r in rows if r["method"] == "fkd" and r["step"] == 1]
    values = [0.65, 0.66]
    assert row["seeds"] == 2
    assert row["map"]["mean"] == pytest.approx(statistics.fmean(values))
    assert row["map"]["std"] == pytest.approx(statistics.stdev(values))
    assert [method for _, method in ordered_methods(rows)] == ["finetune", "fkd"]


def test_the_report_holds_everything_and_runs_nothing(tmp_path):
    write_run(tmp_path)
    page = draw(tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for text in ("65.5", "± 0.7", "finetune", "data:image/jpeg;base64,AAAA", "Phases"):
        assert text in page
    assert 'src="http' not in page
    assert page.count("<svg") == len(METRICS) + 2


def test_an_unfinished_run_has_a_report_too(tmp_path):
    write_run(tmp_path, methods=())
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "ledger.jsonl").unlink()
    assert "Configuration" in draw(tmp_path).read_text()


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 9))
def test_ticks_cover_the_range_with_round_steps(low, span, count):
    found = ticks(low, low + span, count)
    assert found[0] <= low + 1e-6 * max(1, abs(low))
    assert found[-1] >= low + span - 1e-6 * max(1, abs(low + span))
    assert 2 <= len(found) <= count + 4


def test_charts_are_well_formed_and_name_their_lines():
    lines = [Line(HOSTILE, 0, [(0, 1.0), (1, 2.0)], [0.1, 0.2]), Line("empty", 1, [])]
    root = ET.fromstring(line_chart(lines, "x", HOSTILE))
    titles = [element.text for element in root.iter() if element.tag == "title"]
    assert HOSTILE in titles
    assert f"{HOSTILE}, 1: 2.00 ± 0.20" in titles
    assert line_chart([], "x", "y") == ""


def test_timelines_draw_a_bar_a_span():
    spans = [Span("a", "one", 0, 0.0, 30.0), Span("b", "two", 1, 30.0, 90.0)]
    root = ET.fromstring(timeline(spans))
    bars = [element for element in root.iter() if element.tag == "rect"]
    assert [float(b.get("width")) for b in bars] == pytest.approx([304.7, 609.3], abs=0.5)
