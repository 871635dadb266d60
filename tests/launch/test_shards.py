"""The commands `perennial shards ...`, as a user gives them."""

import json
import os
import pickle
import pty
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_shards.sources import SourceImage
from data_shards.sources.registry import SOURCES
from data_shards.writing.writer import write_dataset
from launch.cli import app
from tests.commands import perennial
from tests.conftest import jpeg, source
from tests.data_shards.servers import serving
from tests.data_shards.test_folder import put


def shards(*arguments):
    result = CliRunner().invoke(app, ["shards", *map(str, arguments)])
    if isinstance(result.exception, SystemExit) or result.exception is None:
        return result.output
    raise result.exception


def real(*arguments):
    return perennial("shards", *arguments)


@pytest.fixture
def pictures(tmp_path):
    root = put(tmp_path / "in", [f"{who}/{n}.jpg" for who in "abc" for n in range(3)])
    put(root, ["alone/1.jpg"])
    (root / "a" / "notes.txt").write_text("notes")
    (root / "b" / "3.jpg").write_bytes(b"<html>")
    (root / "b" / "4.jpg").write_bytes(b"")
    return root


def test_an_import_above_its_budget_lists_why_and_exits_with_2(pictures, tmp_path):
    ended = real("import", "folder", pictures, "--out", tmp_path / "d", "--processes", "0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: 2 of 12 images were refused")
    for line in ("empty", "not an image", "not a picture (not counted)"):
        assert line in ended.stdout
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_an_import_within_its_budget_says_what_it_made(pictures, tmp_path):
    told = shards("import", "folder", pictures, "name=mine", "--out", tmp_path / "d",
                  "--max-refused", "0.2", "--processes", "0", "--size", "8x8")  # fmt: skip
    told = " ".join(told.split())  # a long path of the test's own wraps the line anywhere
    assert "10 images of 4 identities" in told and "2 refused" in told
    assert "with a single image: 1" in told
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["image_size"] == [8, 8]
    assert manifest["source"]["folder"]["name"] == "mine"
    again = shards("import", "folder", pictures, "name=mine", "--out", tmp_path / "d",
                   "--max-refused", "0.2", "--size", "8x8")  # fmt: skip
    assert "already" in again


def test_progress_on_a_terminal_has_a_rate_and_the_time_left(tmp_path):
    images = [jpeg(n % 50, 0) for n in range(3000)]
    (tmp_path / "x.bin").write_bytes(pickle.dumps((images, [True] * 1500)))
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "launch.cli", "shards", "import", "verification_bin"]
    command += [str(tmp_path / "x.bin"), "--out", str(tmp_path / "d"), "--processes", "0"]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as importer:
        os.close(terminal)
        seen = b""
        while chunk := _read(screen):
            seen += chunk
    os.close(screen)
    assert importer.returncode == 0
    assert b"/3,000 images, " in seen and b" images/s" in seen
    assert b"% " in seen and b" s left" in seen


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.fixture
def described(tmp_path):
    images = [
        *source(3, 2),
        *(SourceImage(jpeg(9, n), "id-9", "gate", f"q{n}", "query") for n in range(5)),
    ]
    tables = {"pairs": pa.table({"left_key": ["0_0"], "right_key": ["0_1"], "same": [True]})}
    write_dataset(images, tmp_path / "d", {}, tables=tables)
    return tmp_path / "d"


def test_info_tells_images_per_identity_cameras_roles_and_tables(described):
    told = " ".join(shards("info", described).split())
    for line in ("train 6, query 5", "2–3: 3, 4–7: 1", "2, 2, 2.8, 5", "gate 5, camera-0 3",
                 "16x16", "pairs (1 rows)"):  # fmt: skip
        assert line in told
    assert "files are as written" in " ".join(shards("verify", described).split())


def test_a_dataset_by_url_is_verified_told_of_and_shown(described, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with serving(described) as server:
        told = " ".join(shards("info", server.url).split())
        assert "train 6, query 5" in told and "pairs (1 rows)" in told and server.url in told
        assert "6 files are as written" in " ".join(shards("verify", server.url).split())
        for place in (server.url, described):
            shards("show", place, "--out", tmp_path / f"{place == described}.png")
    assert (tmp_path / "True.png").read_bytes() == (tmp_path / "False.png").read_bytes()


def test_show_draws_each_identity_in_a_row_of_its_images(described, tmp_path):
    shards("show", described, "--out", tmp_path / "sheet.png", "--rows", 4, "--columns", 3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    assert sheet.shape == (4 * 134 + 6, 200 + 3 * 118 + 6, 3)
    for row, identity in enumerate((0, 1, 2, 9)):
        shown = sheet[6 + row * 134 : 6 + row * 134 + 112, 200:312]
        shape = np.random.default_rng(identity).integers(0, 255, (4, 4, 3))
        assert np.abs(shown[14::28, 14::28] - shape).mean() < 30
    captions = sheet[6 + 112 : 6 + 128, 200:312]
    assert (captions < 200).any(), "the camera's name"
    assert (sheet[:6] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "foldr", "x", "--out", "y"), "did you mean folder"),
        (("import", "folder", "nowhere", "--out", "y"), "nowhere is no folder"),
        (("import", "webdataset", "pipe:ls", "--out", "y"), "would run a command"),
        (("show", "nowhere", "--out", "x.png"), "holds no dataset"),
        (("show", "nowhere", "--out", "x.gif"), r"must end in \.png"),
    ],
)
def test_mistakes_are_named(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        shards(*arguments)


def test_sources_lists_every_format_and_option():
    told = shards("sources")
    for name, of in SOURCES.items():
        assert name in told and all(option in told for option in of.settings.model_fields)
