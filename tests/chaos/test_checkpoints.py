"""Whatever happens to its files, training goes on from the right checkpoint to the right result."""

import json
import shutil
import subprocess
import sys

import pytest

from monitoring.metrics import Metrics
from tests.chaos import kills
from tests.chaos.kills import value
from tests.trainer.loops import Interrupted, train_step
from trainer.model import Model


def fingerprint(out):
    return Model.open(out / "0" / "model").fingerprint


def test_killed_at_every_write_boundary_of_a_checkpoint(small_folder, tmp_path, record_fault):
    ends = []
    killed = subprocess.run(
        [sys.executable, "-m", "tests.chaos.kills", str(small_folder), str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert killed.returncode == 0, killed.stderr
    deaths = [json.loads(line) for line in killed.stdout.splitlines()][:-1]
    kinds = {death["boundary"].split()[0] for death in deaths}
    assert kinds == set(kills.BOUNDARIES)
    files = " ".join(death["boundary"] for death in deaths)
    for kind in ("embedder", "optimizer", "classifier", "current", "card", "manifest", "latest"):
        assert kind in files
    for death in deaths:
        # it went on from the newest whole checkpoint, and died while saving the one after it
        assert death["iterations"] in (1, 2)
        assert death["after"] - death["before"] in (0, 1)
    published = [death["after"] > death["before"] for death in deaths]
    assert published == sorted(published), "once renamed, a checkpoint stays"
    assert 0 < sum(published) < len(published)
    for folder in ("run", "undisturbed"):
        metrics, told = Metrics(), []
        given = (small_folder, tmp_path / folder, "finetune", 0, kills.ITERATIONS)
        train_step(*given, metrics=metrics, tell=told.append, **kills.SETTINGS)
        ends.append(fingerprint(tmp_path / folder))
        assert value(metrics, "checkpoints_damaged") == 0 and told == []
    assert ends[0] == ends[1]
    record_fault(
        f"SIGKILL at each of the {len(deaths)} write boundaries of a checkpoint (mkdir, open, half "
        "a write, fsync, rename, unlink, rmdir), one after the other in one training",
        "the next start uses the newest whole checkpoint: the one before up to the rename, the new "
        "one after it; nothing counts as damaged",
        "same model, bit for bit",
    )


@pytest.fixture(scope="module")
def interrupted(small_folder, tmp_path_factory):
    """A run folder whose training stopped after iteration 11, and the undisturbed result."""
    folder = tmp_path_factory.mktemp("interrupted")
    train_step(small_folder, folder / "whole", "finetune", 0)
    with pytest.raises(Interrupted):
        train_step(small_folder, folder / "parts", "finetune", 0, stop_at=12)
    checkpoints = folder / "parts" / "0" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["10", "5", "latest"]
    return folder / "parts", fingerprint(folder / "whole")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind", ["embedder", "optimizer", "classifier", "current", "card", "manifest"]
)
def test_a_flipped_bit_in_a_file(small_folder, interrupted, tmp_path, record_fault, kind):
    out = shutil.copytree(interrupted[0], tmp_path / "run")
    (file,) = (out / "0" / "checkpoints" / "10").glob(f"{kind}*")
    flip(file)
    metrics, told = Metrics(), []
    train_step(small_folder, out, "finetune", 0, metrics=metrics, tell=told.append)
    assert value(metrics, "iterations") == 12 - 5
    assert value(metrics, "checkpoints_damaged") == 1
    assert len(told) == 1 and "checkpoints/10" in told[0] and "newest good" in told[0]
    assert fingerprint(out) == interrupted[1]
    record_fault(
        f"a bit flipped in a checkpoint's {file.name}",
        "found by its sha256 before anything is read; one line to the user, "
        "`perennial_checkpoints_damaged_total` = 1, the checkpoint before is used",
        "same model, bit for bit",
    )


def test_the_pointer_emptied(small_folder, interrupted, tmp_path, record_fault):
    out = shutil.copytree(interrupted[0], tmp_path / "run")
    (out / "0" / "checkpoints" / "latest").write_bytes(b"")
    metrics, told = Metrics(), []
    train_step(small_folder, out, "finetune", 0, metrics=metrics, tell=told.append)
    assert value(metrics, "iterations") == 12 - 10
    assert value(metrics, "checkpoints_damaged") == 1
    assert len(told) == 1 and "latest names ''" in told[0]
    assert fingerprint(out) == interrupted[1]
    record_fault(
        "the pointer `latest` emptied",
        "the newest whole checkpoint is found without it; one line to the user, "
        "`perennial_checkpoints_damaged_total` = 1",
        "same model, bit for bit",
    )


def test_every_checkpoint_damaged(small_folder, interrupted, tmp_path, record_fault):
    out = shutil.copytree(interrupted[0], tmp_path / "run")
    for file in (out / "0" / "checkpoints").glob("*/embedder*"):
        flip(file)
    metrics, told = Metrics(), []
    train_step(small_folder, out, "finetune", 0, metrics=metrics, tell=told.append)
    assert value(metrics, "iterations") == 12
    assert value(metrics, "checkpoints_damaged") == len(told) == 2
    assert fingerprint(out) == interrupted[1]
    record_fault(
        "a bit flipped in every checkpoint",
        "the learning step is trained from its start; a line to the user for each",
        "same model, bit for bit",
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a way to give it a size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return subprocess.run(command, capture_output=True, text=True)

    if (mounted := mount("size=1m")).returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield disk, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_disk_is_full(small_folder, interrupted, tmp_path, record_fault, small_disk):
    disk, resize = small_disk
    url, metrics, told = str(disk / "checkpoints"), Metrics(), []

    def training(out, stop_at=None):
        given = {"metrics": metrics, "tell": told.append, "checkpoint_url": url}
        return train_step(small_folder, out, "finetune", 0, stop_at=stop_at, **given)

    with pytest.raises(Interrupted):
        training(tmp_path / "run", stop_at=8)
    (checkpoint,) = disk.glob("checkpoints/0/[0-9]*")
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert resize(int(size * 1.5)).returncode == 0
    with pytest.raises(Interrupted):
        training(tmp_path / "run", stop_at=12)
    assert value(metrics, "checkpoints_failed") == 1
    assert len(told) == 1 and "before iteration 10 could not be saved, training goes on" in told[0]
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["5", "latest"]
    assert resize("1m").returncode == 0
    training(tmp_path / "run")
    assert value(metrics, "iterations") == 8 + 7 + 7
    assert value(metrics, "checkpoints_saved") == 2
    assert value(metrics, "checkpoints_damaged") == 0
    assert fingerprint(tmp_path / "run") == interrupted[1]
    record_fault(
        "disk full while a checkpoint is written (a tmpfs with room for one and a half)",
        "training goes on; one line to the user, `perennial_checkpoints_failed_total` = 1, the "
        "half-written files are deleted; the next start uses the checkpoint before, and once there "
        "is room, saving works again",
        "same model, bit for bit",
    )
