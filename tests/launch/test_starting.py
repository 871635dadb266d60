"""The first hour on the command line: a folder of pictures to a run; what needs no torch."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_shards.settings import InputError
from data_shards.sources.detection import likely_source
from launch.cli import COMMANDS, app
from launch.config.first import Facts, first_configuration, how_many_tested, training_size
from launch.config.load import load_config
from launch.config.run import RunConfig
from launch.config.templates import template, templates
from launch.inference.embed import parts, units
from tests.alone import execute_alone
from tests.commands import perennial
from tests.conftest import jpeg
from tests.data_shards.test_folder import put
from tests.integration.test_photographs import photographs

ROOT = Path(__file__).parents[2]


def test_a_folder_of_pictures_becomes_a_run(tmp_path, monkeypatch):
    photographs(tmp_path / "photos" / "my birds", range(12))
    (tmp_path / "photos" / "my birds" / "x.y 3" / "broken.jpg").write_bytes(jpeg(0, 0)[:300])
    (tmp_path / "photos" / "my birds" / "single").mkdir()
    put(tmp_path / "photos" / "my birds", ["single/0.jpg"])
    done = perennial("init", "photos/my birds", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    for words in (
        "read as: perennial shards import folder photos/my birds",
        "JPEG 33, PNG 8, WEBP 8",
        "damaged",
        "49 images of 13 identities in data/my-birds, 1 refused",
        "no image says which camera took it",
        "1 identities cannot be tested on, which takes two images of each",
        "my-birds.yaml written",
        "perennial run my-birds.yaml",
    ):
        assert words in told, done.stdout
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("my-birds.yaml"))
    assert config.benchmark.test_identities == 4
    planned = perennial("plan", "my-birds.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    short = ["training.iterations=3", "training.milestones=[]", "cluster.workers=0"]
    execute_alone(load_config(Path("my-birds.yaml"), short), tmp_path / "runs" / "try")
    assert (tmp_path / "runs" / "try" / "report.html").exists()

    before = Path("my-birds.yaml").read_bytes()
    again = perennial("init", "photos/my birds", cwd=tmp_path)
    assert again.returncode == 2 and "my-birds.yaml is there already" in again.stderr
    assert Path("my-birds.yaml").read_bytes() == before
    again = perennial("init", "photos/my birds", "--replace", cwd=tmp_path)
    assert "holds just this import already" in again.stdout
    assert "my-birds.yaml replaced" in again.stdout
    of_dataset = perennial("init", "data/my-birds", "--out", "other.yaml", cwd=tmp_path)
    assert of_dataset.returncode == 0, of_dataset.stderr
    assert load_config(Path("other.yaml")) == config


def test_too_few_and_no_images_are_said(tmp_path):
    put(tmp_path / "few", [f"{who}/{n}.jpg" for who in range(3) for n in range(2)])
    (tmp_path / "none" / "who").mkdir(parents=True)
    for folder, words in (
        ("few", "3 identities, 3 of them with two images: a first run needs 8"),
        ("none", "holds no image that can be read as folder"),
        ("nowhere", "does not exist"),
    ):
        done = perennial("init", folder, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    assert not list(tmp_path.glob("*.yaml"))


@given(
    images=st.integers(2, 200),
    identities=st.integers(8, 90_000),
    share=st.floats(0.5, 1),
    cameras=st.integers(0, 20),
    height=st.integers(8, 4000),
    width=st.integers(8, 4000),
    gpus=st.integers(0, 8),
)
def test_a_first_configuration_is_one(images, identities, share, cameras, height, width, gpus):
    facts = Facts(
        dataset="data/x",
        origin="x",
        images=images * identities,
        identities=identities,
        testable=max(4, int(share * identities)),
        cameras=cameras,
        height=height,
        width=width,
        gpus=gpus,
    )
    config = RunConfig.model_validate(yaml.safe_load(first_configuration(facts, "x")))
    assert 4 <= config.benchmark.test_identities <= facts.testable
    assert identities - how_many_tested(facts) >= 4
    assert max(training_size(facts)) <= max(16, height, width)
    assert len(first_configuration(facts, "x").splitlines()) <= 25


def test_what_comes_along_is_listed_and_copied(tmp_path):
    listed = CliRunner().invoke(app, ["init", "--list"], env={"COLUMNS": "200"}).output
    assert all(name in listed for name in templates())
    done = perennial("init", "--from", "crl_face_5step", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "crl_face_5step.yaml").read_bytes() == template(
        "crl_face_5step"
    ).read_bytes()
    done = perennial("init", "--from", "crl_face_5step", cwd=tmp_path)
    assert done.returncode == 2 and "--replace" in done.stderr


@pytest.mark.parametrize(
    ("files", "source", "options"),
    [
        (["a/1.jpg", "b/1.jpg"], "folder", []),
        (["a/c1/1.jpg", "a/c2/1.jpg", "b/c1/1.jpg", "b/c2/2.jpg"], "folder", ["cameras=true"]),
        (["a/x/1.jpg", "b/y/1.jpg"], "folder", []),
        (["a/c1/1.jpg", "a/2.jpg", "b/c1/1.jpg", "b/c2/2.jpg"], "folder", []),
        (["train/a/1.jpg", "query/b/1.jpg"], "folder", ["roles=folders"]),
        (["train.rec", "train.idx"], "recordio", []),
        (["bounding_box_train/1.jpg", "query/2.jpg"], "market1501", []),
        (["list_train.txt", "train/0/1.jpg"], "msmt17", []),
        (["0.tar", "1.tar"], "webdataset", []),
    ],
)
def test_formats_are_known_by_their_names(files, source, options, tmp_path):
    found, _, chosen = likely_source(put(tmp_path, files))
    assert (found, chosen) == (source, options)


def test_sources_that_are_no_folders(tmp_path):
    put(tmp_path, ["lfw.bin", "x.tar"])
    assert likely_source(tmp_path / "lfw.bin")[0] == "verification_bin"
    assert likely_source(tmp_path / "x.tar")[0] == "webdataset"
    with pytest.raises(InputError, match="does not exist"):
        likely_source(tmp_path / "y")


def test_help_lists_every_command_once_under_a_heading():
    shown = CliRunner().invoke(app, ["--help"]).output
    names = [c[0] if isinstance(c, tuple) else c.__name__ for own in COMMANDS.values() for c in own]
    listed = re.findall(r"^  (\w+)  ", shown.split("Every day:")[1], re.M)
    assert listed == names
    assert all(f"\n{heading}:\n" in shown for heading in COMMANDS)
    assert CliRunner().invoke(app, ["--version"]).output.startswith("perennial ")


HEAVY = {"torch", "ray", "pyarrow", "pandas", "numpy", "deepspeed", "nvidia", "matplotlib", "scipy"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["init", "--list"], 0),
        (["config"], 0),
        (["config", "--schema"], 0),
        (["run", "no_such_file.yaml"], 2),
        (["status", "no_such_run"], 2),
    ],
    ids=str,
)
def test_what_people_wait_for_imports_nothing_heavy(words, code):
    told = (
        "import sys\n"
        f"sys.argv = ['perennial', *{words!r}]\n"
        "import launch.commands.errors as errors\n"
        "def end(message, code):\n"
        "    print(message, file=sys.stderr); sys.exit(code)\n"
        "errors._stop = end\n"
        "from launch.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print('imported', *{HEAVY!r} & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "imported", done.stderr


def completed(words, cwd, incomplete=""):
    environment = {
        "_PERENNIAL_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["perennial", *words, incomplete]),
        "COMP_CWORD": str(1 + len(words)),
    }
    code = (
        "import sys\nfrom launch.cli import app\nsys.argv = ['perennial']\n"
        "try:\n    app(prog_name='perennial')\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    return done.stdout.split()


def test_shells_complete_commands_runs_methods_files_and_keys(tmp_path):
    run = tmp_path / "runs" / "demo"
    for method in ("fkd", "finetune"):
        (run / "chains" / method).mkdir(parents=True)
    (run / "run.yaml").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").touch()
    assert completed([], tmp_path, "stat") == ["status"]
    assert completed(["status"], tmp_path) == ["runs/demo"]
    assert completed(["run"], tmp_path) == ["configs/mine.yaml"]
    assert completed(["run", "c.yaml"], tmp_path, "training.learn") == ["training.learning_rate="]
    assert completed(["analyse", "features", "runs/demo", "--method"], tmp_path, "fk") == ["fkd"]


@pytest.mark.parametrize("batch", [7, 64, 1000])
def test_smaller_units_hold_the_same_batches(batch, small, monkeypatch):
    monkeypatch.setattr("launch.inference.embed._PART", 20)
    chosen = np.setdiff1d(np.arange(len(small)), [3, 77])

    def batches(cut):
        return [
            (shard, own[i : i + batch].tolist())
            for shard, own in cut
            for i in range(0, len(own), batch)
        ]

    whole, cut = units(small, chosen), parts(small, chosen, batch)
    assert batches(cut) == batches(whole)
    assert len(cut) >= len(whole) and max(len(own) for _, own in cut) <= max(batch, 20 + batch)
