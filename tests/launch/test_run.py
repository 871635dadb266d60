"""What a user can get wrong before anything is trained: one line, an exit code, nothing lost."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from data_shards.settings import InputError
from launch.config.load import load_config
from launch.config.run import RunConfig
from launch.phases.execute import execute
from launch.runs.code import commit
from launch.runs.lease import holding
from monitoring.records import read_jsonl
from tests.alone import execute_alone
from tests.commands import perennial
from tests.monitoring.whole_run import write_whole_run
from trainer.model import Model

CONSOLE = Console(quiet=True)


@pytest.fixture
def config(small_folder, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"dataset: {small_folder}\nmethods: {{finetune: {{}}}}\n"
        "benchmark: {steps: 2, train_identities: 36, test_identities: 24, pairs: 40}\n"
    )
    return path


def refused(config: Path, out: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        execute(load_config(config, overrides), out, CONSOLE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_step_with_fewer_identities_than_workers(config, tmp_path):
    message = refused(config, tmp_path / "r", "cluster.workers=20")
    assert "learning step 0 has 18 identities, fewer than cluster.workers = 20: lower" in message


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_dataset(config, small_folder, tmp_path, damage):
    copy = shutil.copytree(small_folder, tmp_path / "copy")
    shard = copy / "shard-00001.tar"
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(content[:-512])
    else:
        content[700] ^= 1
        shard.write_bytes(content)
    message = refused(config, tmp_path / "r", f"dataset={copy}")
    assert str(shard) in message
    assert "restore it or build the dataset again" in message


def test_no_dataset(config, tmp_path):
    message = refused(config, tmp_path / "r", "dataset=nowhere")
    assert "nowhere holds no dataset" in message
    assert "perennial shards glyphs --out nowhere" in message


def test_a_folder_made_by_another_configuration_is_left_alone(config, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    other = load_config(config, ["training.learning_rate=0.5"])
    (out / "run.yaml").write_text(yaml.safe_dump(other.model_dump(mode="json")))
    before = (out / "run.yaml").read_bytes()
    message = refused(config, out)
    assert "training.learning_rate (was 0.5, now 0.05)" in message
    assert "another --out" in message
    assert (out / "run.yaml").read_bytes() == before


def test_a_folder_in_use(config, tmp_path):
    with holding(tmp_path / "r", 60):
        message = refused(config, tmp_path / "r")
    assert f"is being run by attempt 1 (process {os.getpid()} on {socket.gethostname()}" in message
    assert "wait for it, or end it first" in message


def command(*words: str) -> subprocess.CompletedProcess:
    return perennial(*words)


def test_errors_are_one_line_and_exit_2(config, tmp_path):
    done = command("run", str(config), "training.iteratons=1", "--out", str(tmp_path / "r"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "r").exists()


def test_a_missing_argument_is_explained():
    done = command("run")
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["status"], ["compare"], ["report"]])
def test_folders_that_are_no_runs_are_named(words, tmp_path):
    done = command(*words, str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["demo"],
        ["compare"],
        ["report"],
        ["status"],
        ["config"],
        ["shards"],
        ["launch", "ssh"],
    ],
)
def test_every_command_explains_itself(words):
    done = command(*words, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


TO_TRAIN = ("torch", "ray", "deepspeed", "nvidia.dali", "pandas")
"""Imports that take seconds together."""
IMPORTED = f"""
import sys
from launch.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(sorted(set({TO_TRAIN}) & sys.modules.keys()), file=sys.stderr)
"""


def test_commands_that_only_read_or_explain_import_nothing_to_train(small_folder, tmp_path):
    folder = write_whole_run(tmp_path / "run", small_folder)
    look = ["--help"], ["run", "--help"], ["launch", "--help"], ["compare"], ["logs"], ["status"]
    for words in look:
        given = words if "--help" in words else [*words, str(folder)]
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED, *given], capture_output=True, text=True, check=False
        )
        assert done.stderr == "[]\n", (words, done.stderr)


def test_every_key_is_printed():
    done = command("config")
    assert done.returncode == 0
    assert "training.iterations" in done.stdout


@pytest.mark.parametrize("lost", ["nothing", "the model", "its mark"])
def test_a_model_that_is_whole_is_not_trained_again(small_folder, tmp_path, lost):
    """The driver died between the model's last byte and the line of the ledger."""
    values = {
        "dataset": str(small_folder),
        "benchmark": {"steps": 1, "train_identities": 36, "test_identities": 24, "pairs": 40},
        "embedder": {"width": 2, "dimension": 4},
        "training": {"iterations": 6, "batch": 24, "log_every": 2},
        "methods": {"finetune": {}},
        "cluster": {"workers": 0, "actors": 1},
    }
    config = RunConfig.model_validate(values)
    out = tmp_path / "run"
    execute_alone(config, out)
    step = out / "chains/finetune/seed-0/steps/0"
    before = Model.open(step / "model").fingerprint
    trained = len(read_jsonl(out / "metrics.jsonl"))
    assert {line["commit"] for line in read_jsonl(out / "ledger.jsonl")} == {commit()}
    (out / "ledger.jsonl").unlink()
    if lost == "the model":
        damaged = bytearray((step / "model/embedder.safetensors").read_bytes())
        damaged[-1] ^= 1
        (step / "model/embedder.safetensors").write_bytes(damaged)
    if lost == "its mark":
        (step / "trained.json").write_text('{"training": "another", "model": "')
    execute_alone(config, out)
    again = len(read_jsonl(out / "metrics.jsonl")) - trained
    assert again == (0 if lost == "nothing" else trained)
    assert Model.open(step / "model").fingerprint == before
