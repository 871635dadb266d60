"""Damaged and hostile files of a run: every command shows the rest, or says in one line why not."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from data_shards.storage.dataset import ShardDataset
from launch.phases.status import status_table
from monitoring.compatibility import summary, summary_tables
from monitoring.live.run import LiveRun, report_of
from monitoring.logs import in_words, read_logs
from monitoring.records import Damage, told
from monitoring.report import draw
from monitoring.results import compare, tables
from tests.fuzz.mutate import mutations
from tests.monitoring.live_runs import ask, ask_json
from tests.monitoring.whole_run import FILES, write_whole_run
from untrusted.errors import InputError

TRIES = int(os.environ.get("PERENNIAL_FUZZ", "8"))
"""Damaged forms of each file."""


def status(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=120)
    for part in status_table(folder):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def compared(folder: Path) -> str:
    console = Console(file=io.StringIO(), width=120)
    damage: Damage = {}
    for table in [*tables(compare([folder], damage)), *summary_tables(summary([folder], damage))]:
        console.print(table)
    for line in told(damage):
        console.print(line)
    return console.file.getvalue()  # type: ignore[attr-defined]


def report(folder: Path) -> str:
    return draw(folder).read_text(encoding="utf-8")


def logs(folder: Path) -> str:
    return "\n".join(in_words(line) for line in read_logs(folder))


def live(folder: Path) -> str:
    run = LiveRun(folder.parent, folder)
    run.look()
    run.study()
    told = run.detail(None, time.time()), run.curves(0), run.overview(None, time.time())
    return json.dumps(told, allow_nan=False)


COMMANDS: dict[str, Callable[[Path], str]] = {
    "status": status,
    "compare": compared,
    "report": report,
    "logs": logs,
    "live": live,
}


@pytest.fixture(scope="module")
def whole(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole_run(tmp_path_factory.mktemp("runs") / "whole", small_folder)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "runs" / "run")


def damaged(content: bytes, lines: bool, seed: int) -> bytes:
    """`content` with one value changed, or cut short."""
    if seed % 10 == 0:
        return content[: len(content) * (seed % 97) // 97]
    if not lines:
        return mutations(json.loads(content), seed)
    every = content.splitlines()
    at = seed % len(every)
    every[at] = mutations(json.loads(every[at]), seed)
    return b"\n".join(every) + b"\n"


def survives(command: str, folder: Path) -> str:
    """What a command shows, or its refusal, which is one line."""
    try:
        return COMMANDS[command](folder)
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    return refusal


def test_a_whole_run_is_shown_by_every_command(run):
    assert "11 of 11 phases are done" in status(run)
    assert "left out" not in status(run)
    assert "top-1" in compared(run) and "left out" not in compared(run)
    assert "Neighbourhoods" in report(run) and "Left out" not in report(run)
    assert '<svg class="layers"' in report(run) and '<svg class="plane"' in report(run)
    assert "begins" in logs(run) and '"done": 4' in live(run)


@pytest.mark.reliability(
    11, "every file of a run may have any value anywhere: commands leave it out, and say what"
)
@pytest.mark.parametrize("file", [name for name in FILES if name != "run.yaml"])
def test_any_value_anywhere_in_a_file_is_left_out_or_refused_in_a_line(run, file):
    path, content = run / file, (run / file).read_bytes()
    for seed in range(TRIES):
        path.write_bytes(damaged(content, file.endswith("l"), seed))
        for command in FILES[file].split():
            survives(command, run)


@pytest.mark.parametrize(
    "blob", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"1" * 5000]
)
@pytest.mark.parametrize("file", FILES)
def test_files_of_nothing_but_rubbish(run, file, blob):
    (run / file).write_bytes(blob + b"\n")
    for command in FILES[file].split():
        survives(command, run)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "device"])
@pytest.mark.parametrize("file", [name for name in FILES if name != "run.yaml"])
def test_what_is_no_file_holds_nobody_up(run, file, kind):
    path = run / file
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    for command in FILES[file].split():
        survives(command, run)


def test_what_is_left_out_is_counted_and_named(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": 7}\n[]\nrubbish\n{"torn')
    (run / "chains/fkd/seed-0/steps/1/evaluation.json").write_text('{"top1": "high"}')
    assert "metrics.jsonl: 3 lines are damaged and left out" in status(run)
    assert "chains/fkd/seed-0/steps/1/evaluation.json: top1: " in compared(run)
    assert "metrics.jsonl: 3 lines are damaged and left out" in report(run)


def test_a_look_at_the_status_writes_nothing(run):
    """A driver may be writing the line that looks torn."""
    with (run / "ledger.jsonl").open("a") as file:
        file.write('{"phase": "fkd/se')
    before = (run / "ledger.jsonl").read_bytes()
    assert "done" in status(run)
    assert (run / "ledger.jsonl").read_bytes() == before


def test_the_status_is_that_of_the_phases_which_were_planned(run, monkeypatch):
    """By the file that says them, or without it by planning anew, for which the data must be there.

    Of what is to be done again, what only prepares it is, too, and nothing else.
    """
    monkeypatch.setattr("launch.phases.status.time.time", lambda: 1.8e9)
    for lost in ("chains/fkd/seed-0/steps/1/model", "chains/fkd/seed-0/steps/1/neighbours"):
        shutil.rmtree(run / lost)
    by_file = status(run)
    assert "9 of 11 phases are done" in by_file
    (run / "phases.json").unlink()
    assert status(run) == by_file
    monkeypatch.setattr(ShardDataset, "open", None)
    with pytest.raises(TypeError):
        status(run)


@pytest.mark.parametrize("text", ["\x1b]0;pwned\x07", "[/]", "[bold]x[/bold]", "\u202egpj", "$x^$"])
def test_hostile_words_are_shown_as_what_they_are(run, text):
    for name, field in (("events.jsonl", "message"), ("logs/driver.jsonl", "message")):
        line = json.loads((run / name).read_bytes().splitlines()[-1])
        with (run / name).open("a") as file:
            file.write(json.dumps({**line, field: text}) + "\n")
    for shown in (status(run), logs(run), live(run)):
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    visible = text.isascii() and text.isprintable()
    assert (text in status(run) and text in logs(run)) == visible


@pytest.mark.parametrize("name", ["<script>", "$x^$", "a" * 201, "[b]", "\x1b[31m"])
def test_folders_of_methods_are_names_or_nothing(run, name):
    shutil.copytree(run / "chains/fkd", run / "chains" / name)
    assert "named as no run names them" in compared(run)
    page = report(run)
    assert "named as no run names them" in page and "\x1b" not in page and "<script" not in page


def test_pictures_that_are_none_do_not_reach_the_page(run):
    path = run / "chains/fkd/seed-0/steps/1/examples.json"
    (search,) = json.loads(path.read_text())
    for picture in ("AAAA", '"><script>', "data:", search["query"]["jpeg"][:-4] + "!!!!"):
        search["query"]["jpeg"] = picture
        path.write_text(json.dumps([search]))
        page = report(run)
        assert "examples.json: 0.query.jpeg: it is no JPEG" in page
        assert "<script" not in page


# What one folder can do to the page over all of them, in the words of its run.yaml
_OK = "methods: {finetune: {}}\nseeds: [0]\nbenchmark: {steps: 1}\nevaluation: {}\ndataset: "


def _wide(folder: Path) -> None:
    many = ",".join(map(str, range(15000)))
    text = f"methods: {'a' * 30000}\nseeds: [{many}]\nbenchmark: {{steps: 1}}\n"
    (folder / "run.yaml").write_text(f"{text}evaluation: {{}}\ndataset: d\n")


def _many(folder: Path) -> None:
    methods = ",".join(f"m{n}: {{}}" for n in range(300))
    seeds = ",".join(map(str, range(300)))
    text = f"methods: {{{methods}}}\nseeds: [{seeds}]\nbenchmark: {{steps: 9}}\n"
    (folder / "run.yaml").write_text(f"{text}evaluation: {{}}\ndataset: d\n")


def _laughs(folder: Path) -> None:
    text = "a0: &a0 [x,x,x,x]\n"
    for n in range(1, 16):
        text += f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 6)}]\n"
    (folder / "run.yaml").write_text(f"{text}{_OK}*a15\n")


def _sparse(folder: Path) -> None:
    for name in ("report.html", "metrics.jsonl", "ledger.jsonl", "events.jsonl"):
        with (folder / name).open("wb") as file:
            file.truncate(200 << 30)


def _targets(folder: Path) -> None:
    (folder / "targets").mkdir()
    for n in range(60):
        addresses = [f"127.{n}.{k // 250}.{k % 250}:1" for k in range(3000)]
        text = json.dumps([{"targets": addresses, "labels": {}}])
        (folder / "targets" / f"t{n}.json").write_text(text)


def _phases(folder: Path) -> None:
    with (folder / "ledger.jsonl").open("w") as file, (folder / "metrics.jsonl").open("w") as lines:
        for n in range(60_000):
            line = {"phase": f"m{n}/seed-{n}/step-0/evaluate", "started": n, "finished": n + 1}
            file.write(json.dumps(line) + "\n")
            line = {"phase": f"m{n}/seed-0/step-0/train", "iteration": 1, "of": 2, "loss": 1}
            lines.write(json.dumps(line) + "\n")


ATTACKS = [_wide, _many, _laughs, _sparse, _targets, _phases]

_SERVE = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
from launch.commands.serving import serve_runs
serve_runs(Path(sys.argv[1]), "127.0.0.1", 0, None, (), lambda line: print(line, flush=True))
"""


@pytest.mark.reliability(
    11, "one hostile folder (YAML laughs, chains, 200 GB files, targets) leaves the live page up"
)
def test_one_hostile_folder_leaves_the_page_up(tmp_path):
    """In a process of its own, that may take 3 GB."""
    for folder in ("good", *(attack.__name__ for attack in ATTACKS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.yaml").write_text(f"{_OK}d\n")
    for attack in ATTACKS:
        attack(tmp_path / attack.__name__)
    command = [sys.executable, "-c", _SERVE, str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
        listed = {run["name"]: run["state"] for run in ask_json(port, "/api/runs")["runs"]}
        assert listed["good"] == "stopped"
        assert {listed["_wide"], listed["_many"], listed["_laughs"]} == {"damaged"}
        assert ask(port, "/report/_sparse")[0] == 404
        for attack in ATTACKS:
            found = ask_json(port, f"/api/runs/{attack.__name__}")
            assert len(found["processes"]) <= 4096
            assert len(found["timeline"]["rows"]) <= 1
            ask_json(port, f"/api/runs/{attack.__name__}/curves?seed=0")
        assert ask_json(port, "/api/runs/good")["state"] == "stopped"
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()


def test_a_report_larger_than_any_is_not_read(tmp_path):
    with (tmp_path / "report.html").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(OSError, match="larger than"):
        report_of(tmp_path, tmp_path)


def test_a_million_chains_are_cut_with_a_word(run):
    line = json.loads((run / "ledger.jsonl").read_bytes().splitlines()[0])
    with (run / "ledger.jsonl").open("a") as file:
        for n in range(2000):
            file.write(json.dumps({**line, "phase": f"m{n}/seed-0/step-0/train"}) + "\n")
    page = report(run)
    assert "2,002 chains, of which the first 500 are drawn" in page
    assert "m499" not in page
