"""URLs with passwords: refused where they are given, left out of what is written and shown."""

import json
import subprocess
import sys

import pytest

from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.destination import destination_at
from launch.clusters.ray_jobs import check_address
from launch.config.load import load_config
from launch.runs.records import append
from trainer.checkpoint import Folder
from untrusted.text import redacted

SECRET = "hunter2hunter2"
URL = f"s3://me:{SECRET}@host/x"
CONFIG = "dataset: data\nmethods: {finetune: {}}\n"


@pytest.mark.reliability(7, "a configuration with a URL that holds a password is refused")
@pytest.mark.parametrize(
    "override",
    [
        f"dataset={URL}",
        f"dataset=https://host/x?token={SECRET}",
        f"training.checkpoint_url={URL}",
        f"evaluation.tests.lfw.dataset={URL}",
        f"adopted={URL}",
    ],
)
def test_a_configuration(tmp_path, override):
    (tmp_path / "c.yaml").write_text(CONFIG)
    with pytest.raises(InputError, match="holds a password") as error:
        load_config(tmp_path / "c.yaml", [override])
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("use", [ShardDataset.open, destination_at, Folder.at, check_address])
def test_wherever_a_url_is_given(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        use(URL.replace("s3", "http") if use is check_address else URL)
    assert SECRET not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.reliability(7, "secrets in printed mappings are left out of errors and logs")
@pytest.mark.parametrize("show", [str, json.dumps])
def test_a_mapping_that_is_printed(show):
    shown = redacted(show({"token": SECRET, "aws_secret_access_key": SECRET, "rank": "7"}))
    assert SECRET not in shown and "7" in shown


def test_a_mapping_within_an_event_leaves_it_json(tmp_path):
    inner = json.dumps({"token": SECRET, "x": 1})
    append(tmp_path, "events.jsonl", {"message": inner, "token": 'a"b'})
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["token"] == "***" and SECRET not in line


def test_an_event_and_a_stack_trace(tmp_path):
    append(tmp_path, "events.jsonl", {"message": f"cannot reach {URL}"})
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["message"] == "cannot reach s3://***@host/x"
    script = (
        "from launch.commands.errors import report_errors\n"
        f"def fail(): raise OSError('cannot reach {URL}')\n"
        "report_errors(fail)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError: cannot reach s3://***@host/x" in done.stderr
    assert done.stderr.count(SECRET) == 0
