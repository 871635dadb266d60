"""Records of a run reach its files, also over a disk that is full for a while."""

import os
import stat

import pytest
from rich.console import Console

from launch.runs.records import Records
from monitoring.progress import RunProgress
from monitoring.records import read_jsonl
from monitoring.run_metrics import RunMetrics


def record(iteration):
    rates = {"loss": 1.0, "images_per_second": 1.0, "data_wait_share": 0.0}
    return {"iteration": iteration, "of": 9, **rates}


@pytest.fixture
def records(tmp_path):
    metrics = RunMetrics(tmp_path, 1, 0)
    return Records(
        tmp_path, RunProgress(Console(quiet=True), metrics, phases=(0, 1), iterations=(0, 9))
    )


def test_lines_that_a_full_disk_refuses_are_written_once_it_has_room(records, tmp_path):
    file = tmp_path / "metrics.jsonl"
    try:  # /dev/full itself: links are not followed
        os.mknod(file, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        file.open("ab").close()
    except PermissionError:
        pytest.skip("devices cannot be made here")
    records.keep(record(1))
    records.keep({"notice": "no room"})
    file.unlink()
    records.keep(record(2))
    first, second = read_jsonl(file)
    assert (first["iteration"], second["iteration"]) == (1, 2)
    assert first["time"] < second["time"]
    (event,) = read_jsonl(tmp_path / "events.jsonl")
    assert event["message"] == "no room" and first["time"] < event["time"] < second["time"]


def test_other_errors_of_the_disk_end_the_run(records, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        records.keep(record(1))
