"""The live page in a real browser, over folders of runs that live, end, crash and mean harm."""

import asyncio
import socket
import time

import pytest

from data_shards.files import write_json
from monitoring.live.server import Page
from monitoring.report import draw
from tests.monitoring.browser import PROGRAM, browsing
from tests.monitoring.live_runs import add, driver, evaluate, phase, record, served, write_run
from tests.monitoring.test_compatibility import write_compatibility
from tests.monitoring.whole_run import ANALYSES

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium on this machine: apt-get install chromium"
)
HOSTILE = "<img src=x onerror=window.hacked=1>"
PHASE = "fkd/seed-0/step-0/train"
DIM = "rgb(102, 112, 120)"


def text(selector):
    return f"(document.querySelector({selector!r})?.textContent ?? '')"


def test_two_hundred_runs_are_listed_and_hostile_words_stay_words(tmp_path):
    root = tmp_path / "runs"
    for number in range(200):
        folder = write_run(root, f"run-{number:03}", steps=2)
        add(folder, "metrics.jsonl", record(PHASE, 50, loss=number + 0.5))
        evaluate(folder, "fkd", 0, 0, top1=0.5)
    hostile = write_run(root, HOSTILE, methods=(HOSTILE,))
    add(hostile, "metrics.jsonl", record(f"{HOSTILE}/seed-0/step-0/train", 50))
    add(hostile, "metrics.jsonl", record(f"{HOSTILE}/seed-0/step-0/train", 60))
    add(hostile, "events.jsonl", {"event": HOSTILE, "message": HOSTILE, "time": 1.0})
    evaluate(hostile, "<script>window.hacked=2", 0, 0, top1=0.5)
    (root / "&quot;'\"><b>").mkdir()
    (root / "&quot;'\"><b>" / "run.yaml").write_text(f"[{HOSTILE}")

    async def look(port):
        async with browsing(tmp_path / "profile") as browser:
            await browser.go(f"http://127.0.0.1:{port}/")
            await browser.until("document.querySelectorAll('.run').length == 202")
            assert await browser.ask(text(".summary")) == (
                "2 need attention, 0 running, 200 at rest"
            )
            first = text(".run .name")
            assert await browser.ask(first) == "&quot;'\"><b>"
            await browser.ask(
                "(() => { const i = document.querySelector('input'); i.value = 'RUN-19';"
                "i.dispatchEvent(new Event('input')); })()"
            )
            assert await browser.ask("document.querySelectorAll('.run').length") == 10
            await browser.ask(
                "(() => { const i = document.querySelector('input'); i.value = '';"
                "i.dispatchEvent(new Event('input')); })()"
            )
            await browser.ask(
                "[...document.querySelectorAll('.run a')]"
                f".find(a => a.textContent == {HOSTILE!r}).click()"
            )
            # no run names a method so: its phases are left out, and its words are shown as words
            await browser.until(f"document.body.innerText.split({HOSTILE!r}).length > 3")
            assert await browser.ask("window.hacked") is None
            elements = "document.querySelectorAll('img, main script, b b').length"
            assert await browser.ask(elements) == 0
            assert browser.complaints == []

    with served(Page(root)) as port:
        asyncio.run(look(port))


def test_the_page_follows_a_run_from_its_first_record_over_a_crash_to_its_report(tmp_path):
    root = tmp_path / "runs"
    folder = write_run(root, "live", steps=1)

    async def look(port):
        async with browsing(tmp_path / "profile") as browser:
            await browser.go(f"http://127.0.0.1:{port}/#run=live")
            await browser.until(f"{text('.pill')}.includes('stopped')")
            with driver(folder) as process:
                add(folder, "metrics.jsonl", record(PHASE, 10, loss=9.25))
                await browser.until(f"{text('.pill')}.includes('running')")
                await browser.until("document.body.innerText.includes('iteration 10 of 100')")
                await browser.until("document.body.innerText.includes('9.25')")
                await browser.until("document.querySelectorAll('svg .dot').length > 0")
                ranks = await browser.ask("document.querySelector('table').innerText")
                assert "rank 0" in ranks and "250 ms" in ranks and "25 %" in ranks
                points = "document.querySelector('polyline.line').points.length"
                for iteration in range(20, 100, 10):
                    add(folder, "metrics.jsonl", record(PHASE, iteration, loss=5.0))
                await browser.until("document.body.innerText.includes('iteration 90 of 100')")
                await browser.until(f"{points} == 9")
                process.kill()
                process.wait()
                await browser.until(f"{text('.pill')}.includes('driver lost')")
                assert "goes on from the last checkpoint" in await browser.ask(text(".alert.bad"))
                await browser.until("document.querySelectorAll('tr.bad').length == 2")
                await browser.until("document.querySelectorAll('.track .broken').length == 1")
                assert await browser.ask("document.title") == "(!) live · perennial"
            with driver(folder) as process:
                await browser.until(f"{text('.pill')}.includes('running')")
                evaluate(folder, "fkd", 0, 0, top1=0.8125)
                (folder / "report.html").write_text(
                    "<title>report</title><p>in full</p><script>document.title = 'hacked'</script>"
                )
                process.stdin.close()
                await browser.until(f"{text('.pill')}.includes('finished')")
            await browser.until("document.querySelectorAll('.plot svg').length == 3")
            assert await browser.ask("document.querySelectorAll('.alert').length") == 0
            assert browser.complaints == []
            await browser.go(await browser.ask("document.querySelector('.report').href"))
            await browser.until("document.body.innerText.includes('in full')")
            assert await browser.ask("document.title") == "report"

    with served(Page(root)) as port:
        asyncio.run(look(port))


def test_kinds_that_nobody_knew_have_a_name_and_a_colour_each(tmp_path):
    folder = write_run(tmp_path / "runs", "run", steps=1)
    kinds = ["calibrate", "distil", "train", *(f"kind-{'a' * n}" for n in range(17)), "further"]
    for number, kind in enumerate(kinds):
        name, at = f"fkd/seed-0/step-0/{kind}", 1000.0 + number
        add(folder, "ledger.jsonl", phase(name, at, at + 1, kind=kind, where="driver"))
    colours = "[...document.querySelectorAll({!r})].map(e => getComputedStyle(e).backgroundColor)"

    async def look(port):
        async with browsing(tmp_path / "profile") as browser:
            await browser.go(f"http://127.0.0.1:{port}/#run=run")
            await browser.until("document.querySelectorAll('.track .span').length == 21")
            names = "[...document.querySelector('.legend').children].map(e => e.textContent)"
            assert await browser.ask(names) == kinds[:20]
            named = await browser.ask(colours.format(".legend .kind"))
            assert await browser.ask(colours.format(".track .span")) == [*named, DIM]
            assert len({*named, DIM, "rgba(0, 0, 0, 0)"}) == 22
            assert browser.complaints == []

    with served(Page(tmp_path / "runs")) as port:
        asyncio.run(look(port))


def test_the_page_says_that_its_server_is_gone_and_comes_back_with_it(tmp_path):
    root = tmp_path / "runs"
    write_run(root, "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = Page(root, token="a token of sixteen or more")

    async def look():
        async with browsing(tmp_path / "profile") as browser:
            with served(page, port):
                await browser.go(
                    f"http://127.0.0.1:{port}/?token=a%20token%20of%20sixteen%20or%20more"
                )
                await browser.until("document.querySelectorAll('.run').length == 1")
                assert "token" not in await browser.ask("location.href")
            await browser.until("!document.getElementById('offline').hidden")
            assert "does not answer" in await browser.ask(text("#offline"))
            assert await browser.ask("document.querySelectorAll('.run').length") == 1
            write_run(root, "two")
            with served(page, port):
                await browser.until("document.getElementById('offline').hidden")
                await browser.until("document.querySelectorAll('.run').length == 2")

    asyncio.run(look())


CUT = """[...document.querySelectorAll('svg text')].filter((e) => {
  const [t, s] = [e.getBoundingClientRect(), e.ownerSVGElement.getBoundingClientRect()];
  return t.left < s.left - 1 || t.right > s.right + 1 || t.bottom > s.bottom + 1;
}).map((e) => e.textContent).concat([...document.querySelectorAll('.card:has(table)')]
  .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.textContent))"""


def test_nothing_of_a_report_is_cut_off(tmp_path):
    write_compatibility(tmp_path, steps=5)
    for name in ("similarity.json", "features/fkd/seed-0/over-steps.json"):
        write_json(tmp_path / "analyses" / name, ANALYSES[name])

    async def look():
        async with browsing(tmp_path / "profile") as browser:
            for width in (390, 1400):
                await browser.go("about:blank")
                await browser.look(tmp_path / "picture.png", width)
                await browser.go(draw(tmp_path).as_uri())
                await browser.until("document.querySelector('table.words') !== null")
                assert await browser.ask(CUT) == []
                assert await browser.ask("document.documentElement.scrollWidth") <= width
                sizes = "[...document.querySelectorAll('.beside svg')].map(e => e.clientWidth)"
                pictures = await browser.ask(sizes)
                assert len(pictures) == 2 and min(pictures) >= 140, "beside each other, legible"

    asyncio.run(look())


def test_two_runs_stand_side_by_side(tmp_path):
    root = tmp_path / "runs"
    for number, name in enumerate(("one", HOSTILE)):
        folder = write_run(root, name, methods=("fkd", "lwf"))
        for method in ("fkd", "lwf"):
            evaluate(folder, method, 0, 0, top1=0.25 + number / 2)
            for iteration in (10, 20):
                losses = {"loss": 10.0 * number + iteration, "images_per_second": 900.0}
                place = f"{method}/seed-0/step-0/train"
                add(folder, "metrics.jsonl", record(place, iteration, **losses))

    async def look(port):
        async with browsing(tmp_path / "profile") as browser:
            await browser.go(f"http://127.0.0.1:{port}/")
            await browser.until("document.querySelectorAll('.pick').length == 2")
            assert await browser.ask("document.querySelector('header .report').hidden")
            await browser.ask("document.querySelectorAll('.pick').forEach(e => e.click())")
            await browser.ask("document.querySelector('header .report').click()")
            await browser.until("document.querySelectorAll('.plot polyline').length == 12")
            table = await browser.ask("document.querySelector('.sides').innerText")
            assert all(text in table for text in ("25.0", "75.0", HOSTILE))
            for width in (390, 1400):
                await browser.look(tmp_path / "picture.png", width)
                assert await browser.ask(CUT) == []
            looks = "[...document.querySelectorAll('.plot polyline')].map(e => e.className.baseVal)"
            found = await browser.ask(looks)
            assert len(set(found)) == 4, "colour by method, dashes by run"
            titles = "[...document.querySelectorAll('.charts h3')].map(e => e.textContent)"
            assert (await browser.ask(titles))[2:] == ["Loss", "Images/s"]
            data = "[...document.querySelectorAll('a.data')].map(e => decodeURIComponent(e.href))"
            loss = (await browser.ask(data))[1]
            assert f'"{HOSTILE}: lwf",0.2,30\n' in loss and '"one: fkd",0.1,10\n' in loss
            assert await browser.ask("window.hacked") is None
            assert browser.complaints == []

    with served(Page(root)) as port:
        asyncio.run(look(port))


def test_nothing_is_wider_than_a_phone(tmp_path):
    root = tmp_path / "runs"
    folder = write_run(root, "a-run-" + "w" * 100, methods=("m" * 80, "fkd"), steps=1)
    add(folder, "metrics.jsonl", record(f"{'m' * 80}/seed-0/step-0/train", 10, time=time.time()))
    add(folder, "events.jsonl", {"event": "notice", "message": "x" * 300, "time": 1.0})

    async def look(port):
        async with browsing(tmp_path / "profile") as browser:
            for theme in (False, True):
                for where in ("", f"#run={folder.name}"):
                    await browser.go("about:blank")
                    await browser.look(tmp_path / "picture.png", 390, theme)
                    await browser.go(f"http://127.0.0.1:{port}/{where}")
                    await browser.until("document.querySelector('.run, svg') !== null")
                    await browser.look(tmp_path / "picture.png", 390, theme)
                    assert await browser.ask("document.documentElement.scrollWidth") == 390
                    colour = await browser.ask("getComputedStyle(document.body).backgroundColor")
                    assert (colour == "rgb(20, 24, 27)") is theme

    with served(Page(root)) as port:
        asyncio.run(look(port))
