"""The report and its parts: complete, self-contained, and safe against hostile names."""

import base64
import csv
import io
import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from monitoring.charts import (
    _BOTTOM,
    _TOP,
    HEIGHT,
    Line,
    Span,
    legend_mark,
    line_chart,
    log_ticks,
    ticks,
    timeline,
)
from monitoring.curves import tradeoffs
from monitoring.report import draw
from monitoring.results import METRICS, compare, evaluations, ordered_methods, tables

HOSTILE = '<script>alert("x")</script>'


def jpeg(side: int = 8) -> str:
    """A picture in base64."""
    Image.new("RGB", (side, side), "red").save(content := io.BytesIO(), "JPEG")
    return base64.b64encode(content.getvalue()).decode()


def write_run(folder: Path, methods=("finetune", "fkd"), seeds=(0, 1), steps=2) -> None:
    for m, method in enumerate(methods):
        for seed in seeds:
            for step in range(steps):
                target = folder / "chains" / method / f"seed-{seed}" / "steps" / str(step)
                target.mkdir(parents=True)
                value = 0.5 + 0.1 * m + 0.01 * seed + 0.05 * step
                (target / "evaluation.json").write_text(json.dumps(dict.fromkeys(METRICS, value)))
                picture = {"identity": HOSTILE, "jpeg": jpeg()}
                (target / "examples.json").write_text(
                    json.dumps([{"query": picture, "found": [picture]}])
                )
    config = {
        "methods": {method: {"kind": "fkd"} for method in methods or ["fkd"]},
        "seeds": list(seeds),
        "evaluation": {},
        "dataset": HOSTILE,
        "benchmark": {"steps": steps, "evaluate": "test"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    record = {"phase": "fkd/seed-0/step-1/train", "iteration": 10, "of": 20, "classify": 1.5}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n" + '{"torn')
    done = {"phase": "fkd/seed-0/step-0/train", "fingerprint": "f"}
    done["output"] = "chains/fkd/seed-0/steps/0/model"
    done |= {"started": 0.0, "finished": 60.0}
    (folder / "ledger.jsonl").write_text(json.dumps(done) + "\n")


def test_means_and_deviations_are_over_seeds(tmp_path):
    write_run(tmp_path)
    rows = compare([tmp_path])
    (row,) = [r for r in rows if r["method"] == "fkd" and r["step"] == 1]
    values = [0.65, 0.66]
    assert row["seeds"] == 2
    assert row["map"]["mean"] == pytest.approx(statistics.fmean(values))
    assert row["map"]["std"] == pytest.approx(statistics.stdev(values))
    # Student's t of one degree of freedom, times the standard error of the mean
    assert row["map"]["half_width"] == pytest.approx(12.7062 * 0.01 / 2, rel=1e-5)
    assert [method for _, method in ordered_methods(rows)] == ["finetune", "fkd"]
    assert [method for _, method in ordered_methods(rows, "forgetting")] == ["finetune", "fkd"]


@pytest.mark.reliability(4, "compare and the report say that ± is over seeds at one split")
def test_plus_minus_says_of_what(tmp_path):
    write_run(tmp_path)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(*tables(compare([tmp_path])))
    told = " ".join(console.export_text().split())
    assert "over seeds of the training, at one split (benchmark.seed)" in told
    page = " ".join(draw(tmp_path).read_text().split())
    assert "over seeds of the training, at one split" in page
    assert "bands are 95 % intervals of the mean over these seeds (Student's t)" in page
    assert "fkd, 1: 65.50 ± 6.35" in page, "a band's half is the interval's"


def test_the_report_holds_everything_and_runs_nothing(tmp_path):
    write_run(tmp_path)
    page = draw(tmp_path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for text in ("65.5", "± 0.7", "finetune", f"data:image/jpeg;base64,{jpeg()}", "Phases"):
        assert text in page
    assert 'src="http' not in page
    keys = page.count('<svg class="look"')
    assert keys == 2 * 2, "a key for each method, over accuracies and over losses"
    assert page.count("<svg") == len(METRICS) + 2 + keys


def test_an_unfinished_run_has_a_report_too(tmp_path):
    write_run(tmp_path, methods=())
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "ledger.jsonl").unlink()
    assert "Configuration" in draw(tmp_path).read_text()


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 9))
@example(0.0, 5e-324, 3)
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


def test_bands_end_where_shares_do_and_points_never_move():
    points, bands = [(0, 50.0), (1, 99.0), (2, -3.0)], [60.0, 5.0, 1.0]
    root = ET.fromstring(line_chart([Line("a", 0, points, bands)], "x", "y", within=(0, 100)))
    corners, line = (root.find(f".//{kind}").attrib["points"] for kind in ("polygon", "polyline"))
    heights, at = ([float(c.split(",")[1]) for c in own.split()] for own in (corners, line))
    scale = (at[2] - at[1]) / 102
    upper, lower = heights[:3], heights[:2:-1]
    drawn = [(at[1] + 99 * scale - y) / scale for y in (*upper, *lower)]
    assert drawn == pytest.approx([100, 100, -2, 0, 94, -3], abs=0.1)


WORDS = st.characters(categories=("L", "N", "P", "S", "Zs"))


def data_of(chart: str) -> list[list[str]]:
    """The rows of the CSV that a figure links to."""
    address = ET.fromstring(chart).find("a").attrib["href"]
    kind, _, text = address.partition(",")
    assert kind == "data:text/csv;charset=utf-8"
    return list(csv.reader(io.StringIO(unquote(text))))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.text(WORDS, max_size=8))
def test_a_chart_s_data_are_the_values_drawn(values, name):
    points = [(float(x), y) for x, y in enumerate(values)]
    _, *rows = data_of(line_chart([Line(name, 0, points)], "x", "y"))
    assert [(float(x), float(y)) for _, x, y, _ in rows] == points
    for told in (row[0] for row in rows):
        assert not told.startswith(("=", "+", "-", "@")), "a spreadsheet would run it"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_an_axis_of_shares_ends_at_100(values):
    points = [(float(x), y) for x, y in enumerate(values)]
    root = ET.fromstring(line_chart([Line("a", 0, points)], "x", "y", within=(0, 100)))
    heights = [e for e in root.iter("text") if e.attrib.get("text-anchor") == "end"]
    assert all(-1e-9 <= float(e.text) <= 100 for e in heights)


def test_methods_have_one_order_and_one_colour_each(tmp_path):
    """That of the configuration, not of names or of who is best; a method that has finished
    nothing keeps its colour."""
    write_run(tmp_path, methods=("z", "fkd", "a"))
    shutil.rmtree(tmp_path / "chains" / "fkd")
    page = draw(tmp_path).read_text()
    drawn = re.findall(r'stroke="var\(--(c\d+)\)"[^>]*><title>(\w+)</title>', page)
    assert {name: colour for colour, name in drawn} == {"z": "c0", "a": "c2", "fkd": "c1"}
    assert len(set(drawn)) == 3
    named = re.findall(r"<tr><td>(\w+)</td>", page)
    assert named[:4] == ["z", "a", "z", "a"]
    assert [method for _, method in ordered_methods(compare([tmp_path]))] == ["z", "a"]


def drawn_kinds(page: str) -> dict[str, set[str]]:
    """By kind of phase, the colours that its bars and its name in the legend have."""
    timeline = page.partition("<h2>Phases</h2>")[2].partition("</svg>")[0]
    colours: dict[str, set[str]] = {}
    for bar in re.findall(r"<rect [^>]*>.*?</rect>", timeline):
        (colour,), (kind,) = re.findall(r"--c\d+", bar), re.findall(r"step-\d+/([a-z_]+):", bar)
        colours.setdefault(kind, set()).add(colour)
    for colour, kind in re.findall(r"(--c\d+)\)\"></i>([a-z_]+)</li>", timeline):
        colours[kind].add(colour)
    return colours


def finish(folder: Path, *kinds: str, step: int = 0) -> None:
    """Adds a finished phase of each kind to a run's ledger."""
    name, outputs = f"fkd/seed-0/step-{step}", f"chains/fkd/seed-0/steps/{step}"
    line = {"fingerprint": "f", "started": 60.0, "finished": 90.0, "where": "driver"}
    with (folder / "ledger.jsonl").open("a") as file:
        for kind in kinds:
            where = {
                "phase": f"{name}/{kind}",
                "kind": kind,
                "output": f"{outputs}/phases/{kind}/model",
            }
            file.write(json.dumps({**line, **where}) + "\n")


def test_a_kind_of_phase_that_nobody_knew_has_a_colour_of_its_own(tmp_path):
    """When all the work is done: the report must not be what fails."""
    write_run(tmp_path)
    finish(tmp_path, "evaluate", "distil_more", "calibrate")
    finish(tmp_path, "calibrate", "prune", step=1)
    assert drawn_kinds(draw(tmp_path).read_text()) == {
        "train": {"--c0"},
        "evaluate": {"--c1"},
        "distil_more": {"--c2"},
        "calibrate": {"--c3"},
        "prune": {"--c4"},
    }


def test_phases_of_one_kind_share_its_colour_whatever_they_are_called(tmp_path):
    write_run(tmp_path)
    finish(tmp_path, "calibrate")
    text = (tmp_path / "ledger.jsonl").read_text()
    (tmp_path / "ledger.jsonl").write_text(text + text.replace("0/calibrate", "0/calibrate_again"))
    assert drawn_kinds(draw(tmp_path).read_text())["calibrate_again"] == {"--c1"}


def test_more_kinds_than_any_run_has_are_counted_not_named(tmp_path):
    write_run(tmp_path)
    finish(tmp_path, *(f"kind_{'a' * n}" for n in range(1, 31)))
    page = draw(tmp_path).read_text()
    assert len({next(iter(c)) for c in drawn_kinds(page).values()}) == 20 + 1
    assert "11 further kinds" in page and "--c20: var(--dim)" in page


def test_timelines_draw_a_bar_a_span():
    spans = [Span("a", "one", 0, 0.0, 30.0), Span("b", "two", 1, 30.0, 90.0)]
    root = ET.fromstring(timeline(spans))
    bars = [element for element in root.iter() if element.tag == "rect"]
    assert [float(b.get("width")) for b in bars] == pytest.approx([347.5, 694.9], abs=0.5)


def with_tests(folder: Path) -> None:
    """Adds test sets to every evaluation of a run folder."""
    roc = [[0.001, 0.5], [0.01, 0.75], [1.0, 1.0]]
    for number, file in enumerate(sorted(folder.glob("chains/*/*/steps/*/evaluation.json"))):
        cmc = [0.5, 0.6 + 0.01 * number]
        tests = {
            "lfw": {"accuracy": 0.9, "tar": {"0.001": 0.5, "0.01": 0.75}, "roc": roc},
            "megaface": {"raw": {"rank1": 0.5, "cmc": cmc}, "cleaned": {"rank1": 0.6, "cmc": cmc}},
            "ijbc": {"tar": {"1e-05": 0.1, "0.0001": 0.2}, "tpir": {"0.1": 0.3}, "open_set": roc},
        }
        known = json.loads(file.read_text())
        file.write_text(json.dumps({**known, "roc": roc, "cmc": cmc, "tests": tests}))


def test_test_sets_are_compared_beside_the_benchmark(tmp_path):
    write_run(tmp_path)
    with_tests(tmp_path)
    rows = compare([tmp_path])
    found = {k: v["mean"] for k, v in rows[0].items() if k.startswith("tests.")}
    assert found == {
        "tests.lfw.accuracy": 0.9,
        "tests.lfw.tar": 0.5,
        "tests.megaface raw.rank1": 0.5,
        "tests.megaface cleaned.rank1": 0.6,
        "tests.ijbc.tar": 0.2,
        "tests.ijbc.tpir": 0.3,
    }
    titles = [str(table.title) for table in tables(rows)]
    assert titles[-3:] == [
        "megaface cleaned: rank-1 (%)",
        "ijbc: TAR at FAR 0.0001 (%)",
        "ijbc: TPIR at FPIR 0.1 (%)",
    ]


def test_runs_with_and_without_a_test_set_are_compared(tmp_path):
    with_one, without = tmp_path / "a", tmp_path / "b"
    for folder in (with_one, without):
        folder.mkdir()
        write_run(folder)
    with_tests(with_one)
    drawn = {str(t.title): t.row_count for t in tables(compare([without, with_one]))}
    assert drawn["top-1 on unseen identities (%)"] == 4
    assert drawn["lfw: 10-fold accuracy (%)"] == 2


def test_the_report_draws_every_tests_curves(tmp_path):
    write_run(tmp_path)
    with_tests(tmp_path)
    page = draw(tmp_path).read_text()
    for title in (
        *(f"benchmark: {kind}" for kind in ("ROC", "DET", "CMC")),
        *(f"lfw: {kind}" for kind in ("ROC", "DET")),
        *("megaface raw: CMC", "megaface cleaned: CMC", "ijbc: open set"),
    ):
        assert f"<h3>{title}</h3>" in page
    assert "<h3>lfw: CMC</h3>" not in page


def test_a_curve_is_of_the_newest_step_and_first_seed(tmp_path):
    write_run(tmp_path, methods=("fkd",))
    files = sorted(tmp_path.glob("chains/*/*/steps/*/evaluation.json"))
    for number, file in enumerate(files):
        file.write_text(json.dumps({**json.loads(file.read_text()), "cmc": [0.1 * number, 1.0]}))
    assert files[1].parts[-4:-1] == ("seed-0", "steps", "1")
    (chart,) = tradeoffs(evaluations(tmp_path), ["fkd"], {"fkd": 0})["benchmark"].values()
    alone = line_chart(
        [Line("fkd", 0, [(1, 10.0), (2, 100.0)])],
        "rank",
        "found among the first, %",
        points=False,
        log_x=True,
    )
    assert chart == alone


def test_a_logarithmic_axis_spaces_powers_of_ten_evenly_and_leaves_zero_out():
    points = [(0.0, 0.5), (1e-3, 0.9), (1e-2, 0.09), (1e-1, 0.009), (1.0, 0.0)]
    chart = line_chart([Line("a", 0, points)], "x", "y", points=False, log_x=True, log_y=True)
    (drawn,) = [e for e in ET.fromstring(chart).iter() if e.tag == "polyline"]
    xs, ys = zip(*(map(float, p.split(",")) for p in drawn.get("points").split()), strict=True)
    assert len(xs) == 3
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)
    assert line_chart([Line("a", 0, [(0.0, 1.0)])], "x", "y", log_x=True) == ""


def looks_of(chart):
    """Of each line its colour, its dashes, and the shape of its points."""
    tree = ET.fromstring(chart)
    for line in tree.iter("polyline"):
        name = line.find("title").text
        shapes = {p.get("d") for p in tree.iter("path") if p.find("title").text.startswith(name)}
        yield line.get("stroke"), line.get("stroke-dasharray"), *shapes


def test_forty_lines_look_different_and_as_their_legend_says():
    lines = [Line(f"line {n:02}", n, [(0, n), (1, n + 1)]) for n in range(40)]
    found = [*looks_of(line_chart(lines, "x", "y"))]
    assert len({*found}) == len(found) == 40
    for look, drawn in enumerate(found):
        mark = ET.fromstring(legend_mark(look))
        line, point = mark.find("line"), mark.find("path")
        assert (line.get("stroke"), line.get("stroke-dasharray"), point.get("d")) == drawn
        assert point.get("fill") == line.get("stroke")


@given(
    values=st.lists(st.floats(0, 100), min_size=2, max_size=8),
    band=st.floats(0, 3),
)
@example(values=[1.5, 1.5], band=1e-12)
def test_the_axis_ends_where_the_values_do(values, band):
    """Within a twentieth of the chart: nothing is drawn outside, and no half of it is empty."""
    drawn = Line("a", 0, [*enumerate(values)], [band] * len(values))
    tree = ET.fromstring(line_chart([drawn], "x", "y"))
    (area,) = [p.get("points") for p in tree.iter("polygon")] or [
        p.get("points") for p in tree.iter("polyline")
    ]
    heights = [float(point.split(",")[1]) for point in area.split()]
    grid = [float(line.get("y1")) for line in tree.iter("line") if line.get("class") == "grid"]
    top, bottom = _TOP, HEIGHT - _BOTTOM
    assert top - 0.1 <= min(heights) and max(heights) <= bottom + 0.1
    assert all(top - 0.1 <= y <= bottom + 0.1 for y in grid) and grid
    if max(values) - min(values) > 1e-3:
        room = (bottom - top) / 20
        assert min(heights) <= top + room and max(heights) >= bottom - room


@given(st.floats(1e-8, 1e8), st.floats(1, 1e6))
def test_logarithmic_ticks_cover_the_range(low, factor):
    found = log_ticks(low, low * factor)
    assert found[0] <= low * 1.001
    assert found[-1] >= low * factor * 0.999
    assert 1 <= len(found) <= 17
