import json
import os

import pytest

from data_shards.settings import InputError
from launch.config.load import load_config
from launch.phases.planning import phases
from launch.runs.ledger import Ledger
from monitoring.records import checked
from monitoring.schemas import LEDGER
from tests.launch.test_net import CONFIGS, ROOT, run_of

RECORD = {
    "phase": "fkd/seed-0/step-1/train",
    "fingerprint": "abc",
    "output": "chains/fkd/seed-0/steps/1/model",
    "started": 1.0,
    "finished": 2.0,
}
THIRD = "fkd/seed-0/step-3/train"


def test_what_is_recorded_is_found_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger.open(path).add(RECORD)
    ledger = Ledger.open(path)
    assert ledger.has(RECORD["phase"], "abc")
    assert not ledger.has(RECORD["phase"], "other")
    assert not ledger.has("fkd/seed-0/step-2/train", "abc")
    assert ledger.twin("abc") == RECORD
    assert ledger.twin("other") is None


def test_what_is_recorded_is_known_at_once_and_on_the_disk(tmp_path, monkeypatch):
    """A twin later in the same run is linked to it, and a power cut does not lose it."""
    ledger, forced = Ledger.open(tmp_path / "ledger.jsonl"), []
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.fstat(file).st_size))
    ledger.add(RECORD)
    assert ledger.twin("abc") == RECORD
    assert forced == [ledger.path.stat().st_size] != [0]


def test_a_line_cut_short_by_a_crash_is_dropped_and_the_next_is_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger.open(path).add(RECORD)
    first = path.stat().st_size
    Ledger.open(path).add({**RECORD, "phase": "fkd/seed-0/step-2/train"})
    whole = path.read_bytes()
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        ledger = Ledger.open(path)
        assert [r["phase"] for r in ledger.records] == [RECORD["phase"]]
        ledger.add({**RECORD, "phase": THIRD})
        assert [r["phase"] for r in Ledger.open(path).records] == [RECORD["phase"], THIRD]


@pytest.mark.parametrize(
    "line", ["rubbish", "{}", '{"phase": "fkd/seed-0/step-1/train", "attempt": []}', "[" * 9999]
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{line}\n{json.dumps(RECORD)}\n")
    with pytest.raises(InputError, match=r"line 2 of .*ledger\.jsonl is damaged"):
        Ledger.open(path)


def test_a_whole_last_line_of_another_shape_is_not_taken_for_a_torn_one(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps({**RECORD, 'finished': None})}\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"line 2 .*finished.*it was of fkd/seed-0/step-1/train"):
        Ledger.open(path)
    assert path.read_bytes() == before


def test_an_output_out_of_the_run_folder_is_refused(tmp_path):
    """A phase of the same definition would be linked to it."""
    path = tmp_path / "ledger.jsonl"
    for output in ("/etc/passwd", "../other", "chains/fkd/seed-0/steps/1/../../x"):
        path.write_text(json.dumps({**RECORD, "output": output}) + "\n")
        with pytest.raises(InputError, match=r"line 1 .*output"):
            Ledger.open(path)


@pytest.mark.parametrize("numbers", [[1, 1, 2, 1, 2, 1], [None, 1, 3, 2, 3], [2, 1]])
def test_what_a_superseded_attempt_wrote_late_does_not_count(tmp_path, numbers):
    """It was frozen between the look at its lease and the write."""
    path, highest, valid = tmp_path / "ledger.jsonl", 0, []
    for place, number in enumerate(numbers):
        record = {
            **RECORD,
            "phase": f"fkd/seed-0/step-{place}/train",
            **({"attempt": number} if number else {}),
        }
        Ledger.open(path).add(record)
        if (number or highest) >= highest:
            valid.append(record["phase"])
        highest = max(highest, number or 0)
    assert [record["phase"] for record in Ledger.open(path).records] == valid


def test_whatever_a_phase_is_called_its_line_can_be_read_again(tmp_path):
    """A name or an output that the ledger refuses would be found out when the work is done."""
    for name in CONFIGS:
        run = run_of(load_config(ROOT / "configs" / f"{name}.yaml"), tmp_path)
        for phase in phases(run):
            line = {**phase.facts, "started": 1.0, "finished": 2.0}
            assert checked(line, LEDGER).items() <= line.items()
