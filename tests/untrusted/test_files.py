"""Files of folders that others may write to."""

import pytest

from data_shards.quarantine import Quarantine
from data_shards.storage.tars import ShardFile
from launch.execution.failures import crash_told
from launch.models.work_folder import locked
from launch.runs.ledger import Ledger
from launch.runs.records import append


def told(folder):
    with crash_told(folder / "logs"):
        pass


def taken(folder):
    with locked(folder):
        pass


WRITERS = {
    "events.jsonl": lambda folder: append(folder, "events.jsonl", {}),
    "ledger.jsonl": lambda folder: Ledger(folder / "ledger.jsonl", []).add({}),
    "quarantine": lambda folder: Quarantine(folder / "quarantine", 1).add(0, "why"),
    ".lock": taken,
    "logs": told,
    "shard.tar.part": lambda folder: ShardFile(folder / "shard.tar"),
}


@pytest.mark.reliability(8, "what is written to a folder does not follow links that lie there")
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(tmp_path, name):
    folder, outside = tmp_path / "folder", tmp_path / "profile"
    folder.mkdir()
    outside.write_text("mine")
    (folder / name).symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        WRITERS[name](folder)
    assert outside.read_text() == "mine"
