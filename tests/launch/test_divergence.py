"""A chain that diverges, beside others of its run."""

import json

import pytest

from data_shards.settings import InputError
from launch.config.load import load_config
from monitoring.run_folder import PLANNED_FILE
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config

WILD = {
    "kind": "finetune",
    "training": {"learning_rate": 1e30, "guard": {"rewind_after": 2, "max_rewinds": 0}},
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_others_are_finished_and_what_is_the_same_work_is_not_tried_again(tmp_path):
    methods = {"wild": WILD, "sound": {"kind": "finetune"}, "as-wild": {**WILD, "over": "all"}}
    config, run = load_config(write_config(write_classes(tmp_path), methods)), tmp_path / "run"
    with pytest.raises(InputError, match=r"but what needs this: wild/seed-0/step-0/train: itera"):
        execute_alone(config, run)
    done = [line["phase"] for line in lines(run / "ledger.jsonl")]
    of_sound = [line["phase"] for line in json.loads((run / PLANNED_FILE).read_text())]
    assert done == [name for name in of_sound if name.startswith("sound/")] != []
    events = [event for event in lines(run / "events.jsonl") if event["event"] == "diverged"]
    (event,) = events
    assert event["message"].startswith("wild/seed-0/step-0/train: iteration")
    assert "sound" in (run / "report.html").read_text()

    with pytest.raises(InputError, match="but what needs this: wild/"):  # and says so every time
        execute_alone(config, run)
    assert [line["phase"] for line in lines(run / "ledger.jsonl")] == done
