"""A group of workers that fails in the same way whenever it is started."""

import pytest

from monitoring.records import read_jsonl
from tests.chaos.test_processes import config  # noqa: F401
from tests.integration.test_resume import finish, start


@pytest.mark.reliability(
    15, "a failure that repeats before any progress ends the run, with its cause in one line"
)
def test_the_same_failure_twice_ends_the_run_with_its_cause(config, tmp_path, monkeypatch):  # noqa: F811
    """Each worker's Python is given a torch library that raises as soon as training begins."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "deepspeed.py").write_text("raise OSError('libcuda.so.1: wrong ELF class')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken), prepend=":")
    code, _, err = finish(start(config, tmp_path / "run"))
    assert code == 2
    assert err.count("\n") == 1, err
    assert "fails in the same way whenever it is started, at iteration 0: rank" in err
    assert "OSError: libcuda.so.1: wrong ELF class" in err
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    failed = [event for event in events if event["event"] == "failed"]
    assert len(failed) == 2
    assert all("wrong ELF class" in event["message"] for event in failed)
    assert len([e for e in events if e["event"] == "restart" and e["rank"] == 0]) == 1
