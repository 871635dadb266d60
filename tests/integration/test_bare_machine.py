"""A whole run with Ray where almost everything that it usually finds is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_surroundings import nameless

ROOT = Path(__file__).parents[2]
CONFIG = """
dataset: {dataset}
benchmark: {{steps: 1, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 4, batch: 24, log_every: 2}}
methods: {{finetune: {{}}}}
cluster: {{workers: 1, actors: 1, threads: 1}}
"""


@pytest.mark.reliability(
    15,
    "with a TMPDIR too long for sockets, a HOME that cannot be written and a user without a name, "
    "a run uses private folders, says so in one line, and is finished",
)
def test_a_long_tmpdir_no_home_and_no_name_together(small_folder, tmp_path):
    config, out = tmp_path / "bare.yaml", tmp_path / "run"
    config.write_text(CONFIG.format(dataset=small_folder))
    long = tmp_path / ("scratch" * 12) / ("node0016" * 4)
    long.mkdir(parents=True)
    named = ("USER", "LOGNAME", "USERNAME", "LNAME", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in named}
    environment |= {"HOME": "/proc", "TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.cli", "run", config, "--out", out]
    done = subprocess.run(
        [*nameless(), *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "/proc/.cache" in done.stderr
    assert "is used instead" in done.stderr
    assert (out / "report.html").exists()
