"""A feature generator whose training dies, again and again."""

import subprocess
import sys

from tests.chaos.wgan_kills import KILLED, spec, train
from trainer.checkpoint import Folder


def left(out):
    folder = Folder.at(out / "generator")
    folder.verify()
    return folder.hashes


def test_killed_again_and_again_within_training(tmp_path, record_fault):
    train(spec(tmp_path / "undisturbed"))
    command = [sys.executable, "-m", "tests.chaos.wgan_kills", str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed at") == len(KILLED)
    assert left(tmp_path / "killed") == left(tmp_path / "undisturbed")
    record_fault(
        f"the training of a feature generator killed (SIGKILL), {len(KILLED)} times",
        "it goes on from its newest checkpoint: both networks, both optimisers, its iteration",
        "the networks of an undisturbed training, bit for bit",
    )
