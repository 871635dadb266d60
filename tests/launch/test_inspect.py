"""`perennial inspect` says what is inside a saved folder, and verifies it."""

import pytest
import torch

from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from tests.commands import perennial
from tests.conftest import source
from tests.trainer.loops import Interrupted, train_step
from trainer.checkpoint import save_folder
from trainer.decisions import LargestOfHeads, decision_files
from trainer.heads.collectives import Ranks
from trainer.model import Model


@pytest.fixture(scope="module")
def out(small_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("inspected")
    train_step(small_folder, out, "finetune", 0)
    with pytest.raises(Interrupted):
        train_step(small_folder, out, "fkd", 1, stop_at=12)
    return out


def inspect(location):
    done = perennial("inspect", location)
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


def test_a_decision_says_its_rule_and_whose_it_is(out):
    model = Model.open(out / "0" / "model")
    files, card = decision_files(LargestOfHeads(), {"ends": torch.tensor([5, 18])}, model)
    save_folder(out / "0" / "decision", files, card, Ranks())
    code, text, err = inspect(out / "0" / "decision")
    assert code == 0, err
    assert "kind decision" in text and "rule largest-of-heads" in text and "classes 18" in text
    assert f"of model {model.fingerprint}" in text and "1 tensors, 2 numbers" in text
    _, text, _ = inspect(out / "0" / "model")
    assert "decision" in text and "0/decision" in text.replace(" ", "")


def test_exemplars_are_counted_and_compared_with_their_hashes(tmp_path):
    images = [image for image in source(9, 3) if image.key != "4_0"]
    folder = tmp_path / "exemplars"
    write_dataset(images, folder, {"kind": "exemplars", "choose": "herding", "share": 3})
    code, text, err = inspect(folder)
    assert code == 0, err
    for told in (
        "kind a memory of exemplars",
        "identities 9",
        "images 26",
        "chosen by herding",
        "of each 3",
    ):
        assert told in text
    assert "3 8 id-0, id-1, id-2, id-3, id-5 and 3 more" in text and "2 1 id-4" in text
    files = ShardDataset.open(folder).manifest["files"]
    assert f"bytes {sum(file['bytes'] for file in files.values()):,}" in text
    shard = folder / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    code, text, err = inspect(folder)
    assert code == 2 and "damaged or missing: shard-00000.tar" in err and "Traceback" not in err


def test_a_dataset_that_is_no_memory_is_not_inspected(small_folder):
    code, _, err = inspect(small_folder)
    assert code == 2 and "is a dataset, not a model" in err


def test_nothing_there_is_one_line(tmp_path):
    code, _, err = inspect(tmp_path)
    assert code == 2
    assert "is no model or checkpoint" in err
