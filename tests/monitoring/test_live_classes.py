"""Class-incremental runs on the live page: maps over steps, exemplars, and what is too much."""

import asyncio
import json

import pytest

from monitoring.live import classes
from monitoring.live.run import LiveRun
from monitoring.live.server import Page
from tests.monitoring.browser import PROGRAM, browsing
from tests.monitoring.live_runs import ask, ask_json, evaluate, served, write_run
from tests.monitoring.test_report import HOSTILE, jpeg
from tests.monitoring.whole_run import classified, kept

METHODS = ("finetune", "icarl")


def learn(folder, method, seed, step, **changed):
    """A step's evaluation, and of iCaRL its exemplars."""
    figures = classified(step)
    figures["tasks"] = [share + 0.01 * seed for share in figures["tasks"]]
    evaluate(folder, method, seed, step, **{**figures, **changed})
    where = folder / f"chains/{method}/seed-{seed}/steps/{step}"
    if method == "icarl":
        told = {**kept(step, jpeg()), "images": 1040 + step}
        told["shown"][0]["identity"] = HOSTILE
        (where / "exemplars.json").write_text(json.dumps(told))
    return where


def learned(root, steps=3, seeds=(0, 1)):
    folder = write_run(root, "run", methods=METHODS, steps=steps, seeds=seeds)
    for method in METHODS:
        for seed in seeds:
            for step in range(steps):
                learn(folder, method, seed, step)
    return folder


def studied(folder):
    run = LiveRun(folder.parent, folder)
    run.study()
    return run


def test_a_seeds_maps_and_newest_exemplars_are_told(tmp_path):
    run = studied(learned(tmp_path))
    found = run.classes(1)
    assert (found["tasks"]["row"], found["tasks"]["column"]) == (
        "model after step",
        "classes of step",
    )
    assert [one["name"] for one in found["tasks"]["maps"]] == ["finetune", "icarl"]
    for one in found["tasks"]["maps"]:
        assert one["cells"] == [
            (step, task, pytest.approx(0.5 - 0.1 * (step - task) + 0.01))
            for step in range(3)
            for task in range(step + 1)
        ]
    assert [one["name"] for one in found["confusion"]["maps"]] == [f"{m}, step 2" for m in METHODS]
    cells = [(j, k, pytest.approx(1 / 3)) for j in range(3) for k in range(3)]
    assert found["confusion"]["maps"][0]["cells"] == cells
    (sheet,) = found["sheets"]
    assert (sheet["method"], sheet["step"], sheet["images"]) == ("icarl", 2, 1042)
    assert sheet["shown"][0] == {"identity": HOSTILE, "jpegs": [jpeg(), jpeg()]}
    assert found["left_out"] == [] == run.classes(7)["tasks"]["maps"]


def test_what_has_changed_is_told_anew_and_nothing_else(tmp_path):
    folder = learned(tmp_path)
    run = studied(folder)

    def version():
        run.study()
        return run.detail(None, 0.0)["classes"]

    first = version()
    evaluate(folder, "other", 0, 0, top1=0.5)
    assert version() == first, "an evaluation without learned classes"
    where = learn(folder, "finetune", 0, 2, tasks=[0.1, 0.2, 0.3])
    assert (second := version()) > first
    (map_, _) = run.classes(0)["tasks"]["maps"]
    assert map_["cells"][3:] == [(2, 0, 0.1), (2, 1, 0.2), (2, 2, 0.3)]
    sheet = folder / "chains/icarl/seed-0/steps/2/exemplars.json"
    sheet.unlink()
    assert (third := version()) > second
    assert run.classes(0)["sheets"][0]["step"] == 1
    (where / "evaluation.json").write_text("[")
    assert version() > third
    assert [len(one["cells"]) for one in run.classes(0)["tasks"]["maps"]] == [3, 6]
    assert version() == version()


def test_a_run_without_classes_has_none_of_it(tmp_path):
    folder = write_run(tmp_path, "run")
    evaluate(folder, "fkd", 0, 0, top1=0.5)
    run = studied(folder)
    found = run.classes(0)
    assert not (found["tasks"]["maps"] or found["sheets"] or found["left_out"])
    assert run.detail(None, 0.0)["classes"] == 0


def test_what_is_damaged_or_too_large_is_left_out_and_said(tmp_path, monkeypatch):
    folder = learned(tmp_path, seeds=(0,))
    (folder / "chains/icarl/seed-0/steps/2/exemplars.json").write_text('{"images": -1}')
    found = studied(folder).classes(0)
    assert found["sheets"] == [] and found["left_out"] == [
        "exemplars of icarl: exemplars.json is damaged"
    ]
    monkeypatch.setattr(classes, "_FILES_BYTES", 10)
    (said,) = studied(folder).classes(0)["left_out"]
    assert said == "exemplars from icarl on: they are too large"
    monkeypatch.setattr(classes, "_FILES_BYTES", 1 << 24)
    monkeypatch.setattr(classes, "MOST_DRAWN", 2)
    found = studied(folder).classes(0)
    assert [len(one["cells"]) for one in found["tasks"]["maps"]] == [3, 3]
    assert "maps of more than 2 learning steps" in found["left_out"][0]
    monkeypatch.setattr(classes, "_MOST_NUMBERS", 0)
    found = studied(folder).classes(0)
    assert found["tasks"]["maps"] == [] and len(found["left_out"]) == 1


def test_exemplars_are_not_read_through_links_out_of_the_folder(tmp_path):
    folder = learned(tmp_path / "runs", seeds=(0,))
    sheet = folder / "chains/icarl/seed-0/steps/2/exemplars.json"
    sheet.rename(tmp_path / "elsewhere.json")
    sheet.symlink_to(tmp_path / "elsewhere.json")
    found = studied(folder).classes(0)
    assert found["sheets"] == [] and "icarl" in found["left_out"][0]


def test_the_address_gives_one_seed(tmp_path):
    learned(tmp_path / "runs")
    with served(Page(tmp_path / "runs")) as port:
        ask_json(port, "/api/runs/run")
        found = ask_json(port, "/api/runs/run/classes?seed=1")
        assert len(found["tasks"]["maps"]) == 2 and len(found["sheets"]) == 1
        assert ask(port, "/api/runs/run/classes?seed=x")[0] == 400
        assert ask(port, "/api/runs/none/classes?seed=0")[0] == 404


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_shows_maps_and_exemplars_and_follows_them(tmp_path):
    folder = learned(tmp_path / "runs")
    told = "[...document.querySelectorAll('.heat .cell title')].map(e => e.textContent)"

    async def look(port):
        async with browsing(tmp_path / "profile") as browser:
            await browser.go(f"http://127.0.0.1:{port}/#run=run")
            await browser.until("document.querySelectorAll('.heat').length == 4")
            titles = await browser.ask(told)
            assert len(titles) == 2 * 6 + 2 * 9
            assert titles[3] == "model after step 2, classes of step 0: 30.00 %"
            assert titles[-1] == "images of step 2, taken for a class of step 2: 33.33 %"
            text = await browser.ask("document.body.innerText")
            assert "Class by class seed 0" in text and "1,042 images of 20 classes" in text
            assert HOSTILE in text and await browser.ask("window.hacked") is None
            width = "[...document.querySelectorAll('.exemplars img')].map(i => i.naturalWidth)"
            await browser.until(f"{width}.every(w => w > 0)")
            assert len(await browser.ask(width)) == 2
            learn(folder, "finetune", 0, 2, tasks=[0.125, 0.25, 0.5])
            await browser.until(f"{told}[3].endsWith(' 12.50 %')")
            await browser.ask("document.querySelectorAll('.seeds button')[1].click()")
            await browser.until(f"{told}[3].endsWith(' 31.00 %')")
            for dark in (False, True):
                for width in (390, 1280):
                    await browser.look(tmp_path / f"{width}-{dark}.png", width, dark)
                    wider = "(e => e.scrollWidth - e.clientWidth)(document.documentElement)"
                    assert await browser.ask(wider) == 0, width
            assert browser.complaints == []

    with served(Page(tmp_path / "runs")) as port:
        asyncio.run(look(port))
