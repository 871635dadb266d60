"""`perennial inspect` says what is inside a saved folder, and verifies it."""

import subprocess
import sys

import pytest

from tests.trainer.loops import Interrupted, train_step


@pytest.fixture(scope="module")
def out(small_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("inspected")
    train_step(small_folder, out, "finetune", 0)
    with pytest.raises(Interrupted):
        train_step(small_folder, out, "fkd", 1, stop_at=12)
    return out


def inspect(location):
    command = [sys.executable, "-m", "launch.cli", "inspect", str(location)]
    done = subprocess.run(command, capture_output=True, text=True, env=None)
    return done.returncode, " ".join(done.stdout.replace("│", " ").split()), done.stderr


def test_a_folder_of_checkpoints_shows_its_newest(out):
    code, text, err = inspect(out / "1" / "checkpoints")
    assert code == 0, err
    assert "kind checkpoint" in text and "iteration 10" in text and "saved by 1 ranks" in text
    assert "rows of current 18 to 35" in text and "rows of previous 0 to 17" in text
    assert "state: momentum (float32)" in text and "momentum_buffer of" in text


def test_a_model_is_shown_too(out):
    code, text, err = inspect(out / "0" / "model")
    assert code == 0, err
    assert "kind model" in text and "identities 18" in text and "0 to 17, 18 × 8" in text
    assert "images 16 × 16" in text


def test_the_damaged_file_is_named(out):
    file = out / "1" / "checkpoints" / "5" / "embedder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, text, err = inspect(file.parent)
    assert code == 2
    assert "embedder.safetensors" in err and "Traceback" not in err
    assert text.count("damaged") == 1 and text.count("✓") >= 4


def test_nothing_there_is_one_line(tmp_path):
    code, _, err = inspect(tmp_path)
    assert code == 2
    assert "is no model or checkpoint" in err
