import os

import pytest

from data_shards.settings import InputError
from launch.ledger import Ledger

RECORD = {
    "phase": "fkd/seed-0/step-1/train",
    "fingerprint": "abc",
    "output": "chains/fkd/seed-0/steps/1/model",
    "started": 1.0,
    "finished": 2.0,
}


def test_what_is_recorded_is_found_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add(RECORD)
    ledger = Ledger(path)
    assert ledger.has(RECORD["phase"], "abc")
    assert not ledger.has(RECORD["phase"], "other")
    assert not ledger.has("fkd/seed-0/step-2/train", "abc")
    assert ledger.twin("abc") == RECORD
    assert ledger.twin("other") is None


def test_what_is_recorded_is_known_at_once_and_on_the_disk(tmp_path, monkeypatch):
    """A twin later in the same run is linked to it, and a power cut does not lose it."""
    ledger, forced = Ledger(tmp_path / "ledger.jsonl"), []
    monkeypatch.setattr(os, "fsync", lambda file: forced.append(os.fstat(file).st_size))
    ledger.add(RECORD)
    assert ledger.twin("abc") == RECORD
    assert forced == [ledger.path.stat().st_size] != [0]


def test_a_line_cut_short_by_a_crash_is_dropped_and_the_next_is_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add(RECORD)
    first = path.stat().st_size
    Ledger(path).add({**RECORD, "phase": "second"})
    whole = path.read_bytes()
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        ledger = Ledger(path)
        assert [r["phase"] for r in ledger.records] == [RECORD["phase"]]
        ledger.add({**RECORD, "phase": "third"})
        assert [r["phase"] for r in Ledger(path).records] == [RECORD["phase"], "third"]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"phase": 1}\nrubbish\n{"phase": 2}\n')
    with pytest.raises(InputError, match=r"line 2 of .*ledger\.jsonl is damaged"):
        Ledger(path)


@pytest.mark.parametrize("numbers", [[1, 1, 2, 1, 2, 1], [None, 1, 3, 2, 3], [2, 1]])
def test_what_a_superseded_attempt_wrote_late_does_not_count(tmp_path, numbers):
    """It was frozen between the look at its lease and the write."""
    path, highest, valid = tmp_path / "ledger.jsonl", 0, []
    for place, number in enumerate(numbers):
        record = {**RECORD, "phase": str(place), **({"attempt": number} if number else {})}
        Ledger(path).add(record)
        if (number or highest) >= highest:
            valid.append(str(place))
        highest = max(highest, number or 0)
    assert [record["phase"] for record in Ledger(path).records] == valid
