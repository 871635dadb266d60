"""From the publishers' files to a benchmark, by the commands as they are typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_shards.settings import InputError
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from launch.cli import app
from tests.data_shards.test_reid_sources import CRL, lay, lay_msmt

MARKET = {
    "bounding_box_train": [f"{n:04d}_c{c}s1_000451_03.jpg" for n in (2, 7, 9) for c in (1, 2)],
    "query": [f"0001_c{c}s1_00105{n}_00.jpg" for c in (1, 3) for n in range(3)],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c3s1_000151_01.jpg",
        *(f"{who:04d}_c2s1_00197{n}_01.jpg" for who in (1, 8) for n in range(3)),
    ],
}


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def merged(tmp_path) -> Path:
    lay(tmp_path / "raw" / "market", MARKET)
    lay_msmt(tmp_path / "raw" / "msmt", "mask_train_v2", "mask_test_v2")
    common = ("--out", tmp_path / "market", "--processes", "0")
    said = run("shards", "import", "market1501", tmp_path / "raw" / "market", *common)
    assert "junk (not counted)" in said
    assert "6 images with role train, where 12,936 were published" in said
    common = ("--out", tmp_path / "msmt", "--processes", "0")
    run("shards", "import", "msmt17", tmp_path / "raw" / "msmt", "validation=false", *common)
    out = tmp_path / "merged"
    said = run("shards", "merge", tmp_path / "market", tmp_path / "msmt", "--out", out)
    assert "images of 10 identities" in said
    return out


def test_crl_person_is_built_from_the_originals_byte_for_byte_alike(merged, tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        said = run("shards", "benchmark", "crl-person", merged, "--steps", "2", "--out", file)
        assert "step 1" in said
    assert files[0].read_bytes() == files[1].read_bytes()
    benchmark = build_benchmark(
        ShardDataset.open(merged), BenchmarkSettings(file=files[0], steps=2)
    )
    assert benchmark.row_ends == (3, 5)
    assert [len(np.concatenate(benchmark.steps)), len(benchmark.query)] == [10, 4]
    held = json.loads(files[0].read_text())
    assert sum(key.startswith("market1501/query/0001_c1") for key in held["query"]) == 1
    assert (
        sum(key.startswith("market1501/bounding_box_test/0001_c2") for key in held["gallery"]) == 1
    )
    assert not [key for key in held["gallery"] if "0008_" in key or "0000_c3" in key]


def test_crl_person_as_distributed_takes_its_split_file(tmp_path):
    lay(tmp_path / "raw" / "MIX", CRL)
    (tmp_path / "raw" / "MIX" / "split_5_step.txt").write_text("step 0: [10]\nstep 1: [3]\n")
    out = tmp_path / "d"
    run("shards", "import", "crl_person", tmp_path / "raw", "--out", out, "--processes", "0")
    file, split = tmp_path / "b.json", tmp_path / "raw" / "MIX" / "split_5_step.txt"
    command = ("shards", "benchmark", "crl-person", out, "--out", file, "--split", split)
    run(*command, "--steps", "2")
    assert json.loads(file.read_text())["steps"] == [["crl_person/0010"], ["crl_person/0003"]]
    with pytest.raises(InputError, match="for 2 learning steps, not for 5"):
        run(*command)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("crl-face", "--steps", "3", "--seen", "2"), [2, 2, 1]),
        (("bct-face", "--percents", "40,100"), [2, 3]),
    ],
)
def test_face_benchmarks_by_command(merged, tmp_path, words, steps):
    run("shards", "benchmark", words[0], merged, "--out", tmp_path / "b", *words[1:])
    assert [len(step) for step in json.loads((tmp_path / "b").read_text())["steps"]] == steps


def test_percents_that_are_no_numbers_are_named(merged, tmp_path):
    with pytest.raises(InputError, match="'a,b' is no list of numbers"):
        run("shards", "benchmark", "bct-face", merged, "--percents", "a,b", "--out", tmp_path / "b")


def test_class_incremental_by_command(tmp_path):
    for part, number in (("train", 0), ("val", 1)):
        lay(tmp_path / "raw" / part, {f"n{c:02d}": [f"{number}.jpg"] for c in range(8)})
    out = tmp_path / "d"
    words = ("name=small", "--out", out, "--processes", "0")
    run("shards", "import", "imagenet", tmp_path / "raw", *words)
    file = tmp_path / "b.json"
    said = run("shards", "benchmark", "class-incremental", out, "--tasks", "2", "--out", file)
    assert "classified" in said
    held = json.loads(file.read_text())
    assert [len(step) for step in held["steps"]] == [4, 2, 2]
    assert len(held["classified"]) == 8
