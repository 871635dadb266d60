"""Logs: what each process writes, and how the lines of all of them are read as one."""

import gc
import json
import logging
import warnings

import pytest

from monitoring.logs import LOG, in_words, logging_to, moment, read_logs
from tests.commands import perennial
from untrusted.text import redacted


def write(folder, name, *lines):
    path = folder / "logs" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(time, message, level="info", **others):
    return {"time": time, "level": level, "message": message, **others}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "driver", line(1, "a", phase="x/step-0/train"), line(4, "d", "error"))
    write(tmp_path, "trainer-0", line(2, "b", rank=0, phase="x/step-0/train"))
    cut = write(tmp_path, "trainer-1", line(3, "c", "warning", rank=1, phase="x/step-1/train"))
    with cut.open("a") as file:
        file.write('{"time": 9, "level": "in')
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({}, "abcd"),
        ({"rank": 1}, "c"),
        ({"phase": "step-0"}, "ab"),
        ({"since": 3}, "cd"),
        ({"level": "warning"}, "cd"),
    ],
)
def test_lines_of_all_files_come_in_the_order_of_time(folder, asked, messages):
    assert "".join(found["message"] for found in read_logs(folder, **asked)) == messages


def test_what_is_logged_says_where_it_comes_from(tmp_path):
    at = {"iteration": 3}
    before = logging.getLogger().handlers[:]

    def process():
        with logging_to(tmp_path, "trainer-7", {"job": "trainer", "rank": 7}, lambda: at):
            LOG.info("reads %s", "s3://id:secret@bucket/x")
            at["iteration"] = 4
            logging.getLogger("other").warning("beware")
            warnings.warn("old", stacklevel=1)
            raise ZeroDivisionError("at last")

    with pytest.raises(ZeroDivisionError):
        process()
    first, second, third, last = read_logs(tmp_path)
    assert first["message"] == "reads s3://***@bucket/x"
    assert (first["rank"], first["iteration"], second["iteration"]) == (7, 3, 4)
    assert (second["logger"], third["logger"]) == ("other", "py.warnings")
    assert last["level"] == "error" and "in process" in last["traceback"]
    assert "error   trainer 7 iteration 4: at last\n    Traceback" in in_words(last)
    assert logging.getLogger().handlers == before


def test_an_expected_end_has_no_traceback(tmp_path):
    with pytest.raises(KeyboardInterrupt), logging_to(tmp_path, "driver", {}):
        raise KeyboardInterrupt
    (ended,) = read_logs(tmp_path)
    assert ended["message"] == "interrupted" and "traceback" not in ended


def test_the_end_of_an_actor_is_no_error(tmp_path):
    """Ray throws it away with the log open."""
    opened = logging_to(tmp_path, "actor-0", {})
    opened.__enter__()
    del opened
    gc.collect()
    assert not list(read_logs(tmp_path))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://a.b/c?X-Amz-Signature=abc&x=1", "https://a.b/c?X-Amz-Signature=***&x=1"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("token=abc", "token=***"),
        ("mail a@b.c, 3 @ 4, s3://bucket/a@b", "mail a@b.c, 3 @ 4, s3://bucket/a@b"),
    ],
)
def test_credentials_are_left_out(text, clean):
    assert redacted(text) == clean


def test_moments():
    assert moment("10m", 1000.0) == 400
    assert moment("1.5h", 6000.0) == 600
    assert moment("2026-01-31T09:00:00+00:00", 0.0) == 1769850000
    with pytest.raises(ValueError):
        moment("yesterday", 0.0)


def test_the_command(folder):
    def logs(*words):
        return perennial("logs", *words)

    done = logs(folder, "--rank", 1, "--json")
    assert json.loads(done.stdout)["message"] == "c"
    assert "warning 1 x/step-1/train: c" in logs(folder).stdout
    done = logs(folder, "--since", "yesterday")
    assert done.returncode == 2 and "--since 'yesterday' is no time" in done.stderr
    assert logs(folder / "logs").returncode == 2


def test_a_full_disk_ends_nothing_and_says_nothing_on_the_terminal(tmp_path, capfd):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "driver.jsonl").symlink_to("/dev/full")
    with logging_to(tmp_path, "driver", {}):
        LOG.warning("unheard")
    assert capfd.readouterr().err == ""
