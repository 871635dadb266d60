import pytest

from data_shards.settings import InputError
from launch.ledger import Ledger

RECORD = {"phase": "fkd/seed-0/step-1/train", "fingerprint": "abc", "output": "x"}


def test_what_is_recorded_is_found_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).add(RECORD)
    ledger = Ledger(path)
    assert ledger.has(RECORD["phase"], "abc")
    assert not ledger.has(RECORD["phase"], "other")
    assert ledger.twin("abc") == RECORD
    assert ledger.twin("other") is None


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
