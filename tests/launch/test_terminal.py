"""What others wrote is printed as it stands, under any locale, and steers no terminal."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from launch.cli import app
from launch.clusters.ssh import read_hosts
from launch.models.adopt import Outside, _classifier
from launch.terminal.console import Terminal
from launch.terminal.progress import Progress
from tests.commands import perennial
from tests.data_shards.test_folder import put
from tests.monitoring.live_runs import add, evaluate
from untrusted.errors import InputError
from untrusted.text import tsv_cells, tsv_line

ROOT = Path(__file__).parents[2]
HOSTILE = ["]", "[bold]x", "\x1b]0;own\x07", "\x1b[2Ja", "a\nb", "\x9b31mc", "\u202eexe", "José"]
"""Identities; with the source's name before them, the first is [/]."""


def said(*arguments, code=0):
    done = perennial(*arguments, cwd=ROOT)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def harmless(text):
    unseen = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")}
    return unseen <= {"\n"}


@given(st.text(max_size=40))
def test_a_console_shows_texts_titles_and_cells_as_they_stand(text):
    console = Terminal(file=io.StringIO(), width=400)
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    console.print(f"a {text} b", soft_wrap=True)
    shown = console.file.getvalue()
    assert harmless(shown)
    if "\n" not in text:
        assert f"a {text} b" in shown or not text.isprintable()


@pytest.mark.reliability(
    13, "names, messages and errors are printed as they stand, and cannot steer the terminal"
)
def test_hostile_names_go_through_the_commands(tmp_path):
    people = [f"{name}{number}" for name in HOSTILE for number in range(4)]
    source = put(tmp_path / "in", [f"{who}/{c}/0.jpg" for who in people for c in HOSTILE[::3]])
    out = tmp_path / "o[/]\x1b[31m"
    options = ("name=[", "cameras=true", "--processes", "0")
    told = said("shards", "import", "folder", source, *options, "--out", out)
    told += said("shards", "info", out) + said("shards", "verify", out)
    told += said("shards", "show", out, "--out", tmp_path / "sheet[x].png")
    told += said("shards", "verify", tmp_path / "none[/]\x1b]0;x\x07", code=2)
    assert f"{4 * len(HOSTILE)} identities" in told
    assert "o[/]\\x1b[31m" in told
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    line = {"time": 1.0, "level": "info", "message": "[/] \x1b]0;x\x07 \x9b31m José"}
    (logs / "driver.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    told += said("logs", tmp_path / "run")
    as_json = said("logs", tmp_path / "run", "--json")
    assert json.loads(as_json)["message"] == line["message"]
    assert "[/] \\x1b]0;x\\x07 \\x9b31m José" in told
    run, method = tmp_path / "r[x]\x1b[31m", "[b]\x1b]0;x\x07"
    evaluate(run, method, 0, 0, top1=0.5)  # no run names a method so: it is left out, and said
    evaluate(run, "fkd", 0, 0, top1=0.5)
    (run / "ledger.jsonl").unlink()
    settings = f"{{dataset: '{source.parent / 'plain'}', methods: {{fkd: {{}}}}, "
    settings += "benchmark: {steps: 1, test_identities: 24, seen_identities: 1}}"
    (run / "run.yaml").write_text(settings, encoding="utf-8")
    add(run, "events.jsonl", {"time": 1.0, "event": "notice", "message": "[/] \x1b[2J\x9b31m lost"})
    out.rename(tmp_path / "plain")
    told += said("status", run) + said("compare", run) + said("compare", run, "--json")
    assert "[/] \\x1b[2J\\x9b31m lost" in told
    assert "[b]\\x1b]0;x\\x07" in told
    told += said("run", tmp_path / "[/]\x1b.yaml", code=2)
    told += said("config", ROOT / "configs" / "demo.yaml", "\x1b[31mb=1", code=2)
    assert harmless(told + as_json)


class Work:
    """How far a command is, at 80 columns, by a clock of the test's."""

    def __init__(self, terminal, what="importing", total=3000, unit="images"):
        self.now, self.file = 0.0, io.StringIO()
        self.console = Terminal(file=self.file, width=80, force_terminal=terminal)
        self.progress = Progress(self.console, what, total, unit, clock=lambda: self.now)

    def lines(self):
        with self.console.capture() as shown:
            self.console.print(self.progress.drawn())
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.get()).splitlines()


def test_commands_tell_their_rate_share_and_time_left_at_80_columns():
    work = Work(terminal=True, what=f"importing into {'x' * 100}")
    work.progress.hear(1000)  # by an earlier call: it has no rate
    work.now = 10.0
    work.progress.hear(1500)
    above, below = work.lines()
    assert len(above) <= 80 and " 50%" in above and above.rstrip().endswith("30 s left")
    assert below.strip() == "1,500/3,000 images, 50 images/s"
    unknown = Work(terminal=True, total=None)
    unknown.progress.hear(7)
    assert "%" not in unknown.lines()[0] and unknown.lines()[1].strip().startswith("7 images, ")


def test_without_a_terminal_commands_tell_how_far_they_are_every_half_minute():
    work = Work(terminal=False, what="comparing", total=4, unit="steps")
    told = []
    for second in range(100):
        work.now = float(second)
        if second == 40:
            work.progress.hear(0)
        if second == 50:
            work.progress.hear(1)
        work.progress.tick()
        told.append(len(work.file.getvalue().splitlines()))
    assert [told.index(n) for n in (1, 2, 3)] == [30, 60, 90]
    assert work.file.getvalue().splitlines()[:2] == [
        "comparing: 0/4 steps, 0.00 steps/s",
        "comparing: 1/4 steps, 0.05 steps/s, 60 s left",
    ]


def every_command(command, name=()):
    for key, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, (*name, key))
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(every_command(typer.main.get_command(app)))


@pytest.mark.reliability(13, "--help keeps the words in brackets")
@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_help_keeps_what_stands_in_brackets(name):
    command = COMMANDS[name]
    texts = [command.help or "", *(getattr(p, "help", "") or "" for p in command.params)]
    shown = "".join(CliRunner().invoke(app, [*name, "--help"]).output.split())
    for text in texts:
        for bracketed in re.findall(r"\[[^\]]*\]", text):
            assert "".join(bracketed.split()) in shown


@pytest.fixture(scope="module")
def locales(tmp_path_factory):
    """Environments of other locales: C without Python's help, and those that can be made here."""
    made = {"C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}}
    folder = tmp_path_factory.mktemp("locales")
    for language, charset in (("en_US", "ISO-8859-1"), ("zh_CN", "GBK")):
        name = f"{language}.{charset}"
        if localedef := shutil.which("localedef"):
            command = [localedef, "-i", language, "-f", charset, str(folder / name)]
            subprocess.run(command, capture_output=True, check=False)
        if (folder / name).exists():
            made[charset] = {"LOCPATH": str(folder), "LC_ALL": name, "PYTHONUTF8": "0"}
    return made


@pytest.mark.reliability(14, "names and output are UTF-8 whatever the locale of the machine")
@pytest.mark.parametrize("charset", ["C", "ISO-8859-1", "GBK"])
def test_names_are_utf_8_under_any_locale(locales, charset, tmp_path):
    if charset not in locales:
        pytest.skip(f"no locale of {charset} can be made here")
    names = ["José", "張偉", "naïve ✓"]
    put(tmp_path / "Bilder-é", [f"{who}/{n}.jpg" for who in names for n in range(2)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    environment |= locales[charset] | {"PYTHONPATH": str(ROOT)}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(
            command, capture_output=True, cwd=tmp_path, env=environment, check=False
        )

    words = ["shards", "import", "folder", "Bilder-é", "--out", "daten-é", "--processes", "0"]
    done = run("-m", "launch.cli", *words)
    assert done.returncode == 0, done.stderr.decode()
    assert "✓ 6 images of 3 identities in daten-é" in done.stdout.decode()
    table = pq.read_table(tmp_path / "daten-é" / "identities.parquet").to_pydict()
    assert sorted(names) in [sorted(map(str, column)) for column in table.values()]
    # and where it is used as a library, without the command's beginning
    listed = run(
        "-c",
        "import json\n"
        "from data_shards.sources.folder import FolderSettings, read_folder\n"
        "import os, pathlib; found = pathlib.Path([n for n in os.listdir() if 'Bilder' in n][0])\n"
        "print(json.dumps(sorted({i.identity for i in read_folder(FolderSettings(path=found))})))",
    )
    assert json.loads(listed.stdout) == sorted(names)


def test_a_reader_that_closes_its_pipe_ends_the_command_quietly(tmp_path):
    line = json.dumps({"time": 1.0, "level": "info", "message": "m" * 1000}) + "\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "driver.jsonl").write_text(line * 1000, encoding="utf-8")
    command = f"{sys.executable} -m launch.cli logs {tmp_path} | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, cwd=ROOT, check=False)
    assert done.stderr == b""
    assert done.stdout.endswith(b"mmm\n")


@pytest.mark.reliability(19, "a byte-order mark in a list is no part of a name, UTF-16 is said")
def test_lists_of_names_and_hosts(tmp_path):
    import torch
    from safetensors.torch import save_file

    rows, names = tmp_path / "rows.safetensors", tmp_path / "names.txt"
    given = Outside(
        file=tmp_path / "m.onnx", architecture=None, layer=None, classifier=rows, names=names
    )
    save_file({"weight": torch.zeros(3, 4)}, rows)
    names.write_bytes("\ufeffalice\u2028x\r\nbob\x85\r\ncarol\r\n".encode())
    assert _classifier(given, 4)[1] == ["alice\u2028x", "bob\x85", "carol"]
    names.write_bytes("alice\r\nbob\r\ncarol\r\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"names\.txt is UTF-16: save it as UTF-8"):
        _classifier(given, 4)
    names.write_bytes(b"alice\nJos\xe9\n")
    with pytest.raises(InputError, match=r"names\.txt, line 2 is not UTF-8"):
        _classifier(given, 4)
    hosts = tmp_path / "hosts"
    hosts.write_bytes("\ufeffone address=10.0.0.1\r\ntwo\r\n".encode())
    assert [host.name for host in read_hosts(hosts)] == ["one", "two"]
    with pytest.raises(InputError, match=r"cannot be read: .* is no regular file"):
        read_hosts(tmp_path)


@pytest.mark.reliability(20, "a tab or an end of a line in a name stays within its row of ids.tsv")
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3))
def test_rows_of_ids_are_lines(cells):
    line = tsv_line(cells)
    assert line.splitlines() == [line[:-1]]
    assert tsv_cells(line) == cells
